"""What the lab raises where it cannot do what it was asked for."""


class LabError(RuntimeError):
    """The message says what failed and, where a program did, what it wrote."""
