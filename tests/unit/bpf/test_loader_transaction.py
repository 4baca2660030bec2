"""What a transaction undoes, and when."""

import pytest

from common.bpf.transaction import Transaction


class Held:
    def __init__(self, name: str, closed: list[str]) -> None:
        self._name, self._closed = name, closed

    def close(self) -> None:
        self._closed.append(self._name)
        if self._name == "stubborn":
            raise OSError("it does not close")


def test_failure_undoes_all_steps_last_first() -> None:
    closed: list[str] = []

    def start() -> None:
        with Transaction() as steps:
            steps.hold(Held("first", closed))
            steps.undo_by(lambda: closed.append("second"))
            steps.hold(Held("third", closed))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert closed == ["third", "second", "first"]


def test_success_undoes_nothing_before_it_is_closed() -> None:
    closed: list[str] = []
    with Transaction() as steps:
        steps.hold(Held("first", closed))
    assert closed == []
    steps.close()
    steps.close()
    assert closed == ["first"]


def test_step_that_cannot_be_undone_does_not_keep_the_others() -> None:
    closed: list[str] = []
    steps = Transaction()
    for name in ("first", "stubborn", "third"):
        steps.hold(Held(name, closed))
    with pytest.raises(OSError, match="it does not close"):
        steps.close()
    assert closed == ["third", "stubborn", "first"]
