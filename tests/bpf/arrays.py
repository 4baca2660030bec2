"""Arrays of the kernel, as a whole."""

from common.bpf.maps import ArrayMap


def clear_array(array: ArrayMap) -> None:
    """All elements become zeros."""
    for index in range(array.info.max_entries):
        array.update(index, bytes(array.info.value_size))
