"""What is wrong beside a daemon, said in the log when it begins and when it ends."""

import logging
from collections.abc import Iterable


class Problems:
    """Of one thing, such as a node, which ``fields`` name in each line."""

    def __init__(self, logger: logging.Logger, **fields: str) -> None:
        self._logger = logger
        self._fields = fields
        self._known: frozenset[str] = frozenset()

    def are(self, found: Iterable[str]) -> None:
        """These, a line each, and no others."""
        now = frozenset(found)
        for problem in sorted(now - self._known):
            self._logger.warning("%s", problem, extra=self._fields)
        for problem in sorted(self._known - now):
            self._logger.info("no longer: %s", problem, extra=self._fields)
        self._known = now
