"""The one exception for a kernel or an installation that cannot do eBPF."""

from common.net.errors import HostError


class BpfError(HostError):
    """A `HostError` of the eBPF data plane: the raw one may work all the same.

    ``log`` is all that libbpf and the kernel's verifier said, many lines or none.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
