"""The one exception that hostile bytes raise."""


class WireError(ValueError):
    """Bytes that are not what they claim to be.

    ``reason`` is one lower-case word with underscores: it names a counter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason.replace("_", " "))
        self.reason = reason
