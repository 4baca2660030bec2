"""The owner tables of a packetbridge's backends: no two packetbridges of a host may serve the same one."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from common.net.ownership import Backend, OwnedTable, backend_name


class BackendTables:
    """Owns a table for each backend."""

    def __init__(self, rules: Callable[[Backend], str] = lambda _: "") -> None:
        """``rules`` of a backend's table."""
        self._rules = rules
        self._tables: dict[Backend, OwnedTable] = {}

    def __contains__(self, backend: Backend) -> bool:
        return backend in self._tables

    def add(self, backends: Iterable[Backend]) -> list[Backend]:
        """Those of ``backends`` that are new. `HostError` where one cannot be had: then none is taken."""
        added: list[Backend] = []
        with ExitStack() as failing:
            failing.callback(lambda: self.remove(added))
            for backend in backends:
                if backend not in self._tables:
                    self._tables[backend] = OwnedTable(backend_name(backend), self._rules(backend))
                    added.append(backend)
            failing.pop_all()
        return added

    def keep(self, backends: Iterable[Backend]) -> None:
        """Give up all others."""
        self.remove(self._tables.keys() - set(backends))

    def remove(self, backends: Iterable[Backend]) -> None:
        for backend in backends:
            self._tables.pop(backend).close()

    def close(self) -> None:
        """May be called more than once."""
        self.keep(())
