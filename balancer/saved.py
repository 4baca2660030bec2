"""What the operator has said of nodes at run time, on file: a restart does not forget who is drained."""

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

_NAME = "balancer.nodes.json"
_MODE = 0o600


class SavedWords:
    """By node; what each is, is `balancer.core.roster`'s matter."""

    def __init__(self, directory: Path, logger: logging.Logger) -> None:
        """A file that cannot be read or makes no sense is as good as none, and said."""
        self._path = directory / _NAME
        self._logger = logger
        self.words: Mapping[str, Any] = {}
        try:
            self.words = msgspec.json.decode(self._path.read_bytes(), type=dict[str, dict[str, str | int]])
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s is passed over, nodes are as configured: %s", self._path, error)

    def keep(self, words: Mapping[str, Any]) -> None:
        """In the place of what was there, as a whole. Where it cannot be written, a restart will not know."""
        self.words = words
        draft = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb") as file:
                file.write(msgspec.json.encode(words))
            draft.replace(self._path)
        except OSError as error:
            self._logger.error("cannot write %s, a restart will not know it: %s", self._path, error.strerror)
            with contextlib.suppress(OSError):
                draft.unlink()
