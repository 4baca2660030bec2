"""Bounded tables of immutable values.

The cores know only the `Table` protocol, so that one core can sit on dictionaries here and on BPF maps
there. Every table has a capacity; being full is an answer that the caller must expect, never an eviction
of what somebody relies on.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key")
Key_contra = TypeVar("Key_contra", contravariant=True)
Value = TypeVar("Value")


class TableFullError(Exception):
    """The table has no room for one more key. Nothing was changed."""


class Table(Protocol[Key_contra, Value]):
    """Operations that a dictionary and a BPF hash map both have, each atomic on one key."""

    def get(self, key: Key_contra) -> Value | None: ...

    def put_if_absent(self, key: Key_contra, value: Value) -> Value:
        """The value under ``key`` afterwards: ``value``, or the one that was there first.

        Raises `TableFullError`.
        """
        ...

    def replace(self, key: Key_contra, value: Value) -> None:
        """Put ``value`` in the place of the one under ``key``, which exists."""
        ...

    def delete(self, key: Key_contra) -> None:
        """Remove ``key`` if it is there."""
        ...

    def __len__(self) -> int: ...


class Aging(Protocol[Key_contra, Value]):
    """A table whose entries all live equally long."""

    def get(self, key: Key_contra) -> Value | None: ...

    def put(self, key: Key_contra, value: Value, now: float) -> bool:
        """Put or replace; a new key begins its life ``now``. False where the table is full."""
        ...

    def delete(self, key: Key_contra) -> None:
        """Remove ``key`` if it is there."""
        ...

    def expire(self, now: float) -> object:
        """Remove what is older than the lifetime; `get` may see it until then."""
        ...

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, if at all."""
        ...

    def __len__(self) -> int: ...


class DictTable(Generic[Key, Value]):
    """A `Table` in this process."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._values: dict[Key, Value] = {}
        self.get = self._values.get  # bound once: this is the hot path

    def put_if_absent(self, key: Key, value: Value) -> Value:
        if len(self._values) >= self.capacity and key not in self._values:
            raise TableFullError
        return self._values.setdefault(key, value)

    def replace(self, key: Key, value: Value) -> None:
        if key not in self._values:
            raise KeyError(key)
        self._values[key] = value

    def delete(self, key: Key) -> None:
        self._values.pop(key, None)

    def items(self) -> Iterator[tuple[Key, Value]]:
        """All of them, while they may change."""
        for key in list(self._values):
            value = self._values.get(key)
            if value is not None:
                yield key, value

    def keys(self) -> Iterator[Key]:
        """The same, without the values."""
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)


class AgingTable(Generic[Key, Value]):
    """An `Aging` table in this process: entries leave in the order in which they came.

    ``lifetime`` is in seconds. Replacing a value does not prolong its life. What has expired is gone for
    `get` as soon as `expire` has run with a later time.
    """

    def __init__(self, capacity: int, lifetime: float) -> None:
        self.capacity = capacity
        self.lifetime = lifetime
        self._values: dict[Key, Value] = {}
        self._deadlines: OrderedDict[Key, float] = OrderedDict()  # the first of a dict is slow to find
        self.get = self._values.get

    def put(self, key: Key, value: Value, now: float) -> bool:
        """Put or replace; a new key begins its life ``now``. False where the table is full."""
        if key not in self._values:
            if len(self._values) >= self.capacity:
                return False
            self._deadlines[key] = now + self.lifetime
        self._values[key] = value
        return True

    def delete(self, key: Key) -> None:
        self._values.pop(key, None)
        self._deadlines.pop(key, None)

    def expire(self, now: float) -> list[tuple[Key, Value]]:
        """Remove and return what is older than the lifetime, oldest first."""
        gone = []
        for key, deadline in self._deadlines.items():
            if deadline > now:
                break
            gone.append((key, self._values[key]))
        for key, _ in gone:
            self.delete(key)
        return gone

    def next_deadline(self) -> float | None:
        return next(iter(self._deadlines.values()), None)

    def oldest(self) -> Key | None:
        return next(iter(self._deadlines), None)

    def keys(self) -> Iterator[Key]:
        """All of them, while they may change."""
        return iter(list(self._values))

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)
