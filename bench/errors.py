"""What the benchmark raises where it cannot measure."""


class BenchError(RuntimeError):
    """The message says what failed and what the program that failed has said."""
