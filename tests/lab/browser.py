"""Headless Chromium on a host of the lab, steered over a pipe (Chrome DevTools Protocol)."""

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from lab import Host, LabError

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
)
_ANSWER_SECONDS = 30.0
_READ_SIZE = 1 << 16


class Browser:
    """Shows one page, in real time."""

    def __init__(self, host: Host, url: str, *, width: int = 1280, height: int = 1250) -> None:
        with ExitStack() as failing:
            # Processes of the browser may still write there when its first one has ended.
            profile = failing.enter_context(
                tempfile.TemporaryDirectory(prefix="l3dsr-browser-", ignore_cleanup_errors=True)
            )
            commands, self._to = os.pipe()
            self._from, answers = os.pipe()
            # It reads from descriptor 3 and writes to 4.
            steered = f'exec chromium "$@" 3<&{commands} 4>&{answers}'
            options = [*_OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
            self._child = subprocess.Popen(
                [
                    "ip",
                    "netns",
                    "exec",
                    host.namespace,
                    "bash",
                    "-c",
                    steered,
                    "chromium",
                    *options,
                    "about:blank",
                ],
                pass_fds=[commands, answers],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(commands)
            os.close(answers)
            self._unread = b""
            self._last = 0
            failing.callback(self._end)
            target = self._do("Target.createTarget", url=url)["targetId"]
            self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self._do("Emulation.setDeviceMetricsOverride", **size)
            self._owned = failing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript on the page."""
        found = self._do("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def text(self) -> str:
        """What can be read on the page, without what is hidden."""
        return str(self.evaluate("document.body.innerText"))

    def rows(self) -> list[list[str]]:
        """Of all tables, the texts of the cells."""
        cells = "[...row.cells].map(cell => cell.innerText.replace(/\\s+/g, ' ').trim())"
        found: list[list[str]] = self.evaluate(f"[...document.querySelectorAll('tr')].map(row => {cells})")
        return found

    def await_that(self, condition: Callable[[], bool], seconds: float) -> None:
        """Raises LabError, showing the page, where it does not come about within ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"not so within {seconds} s; the page:\n{self.text()}")
            time.sleep(0.05)

    def take_picture(self, target: Path) -> None:
        """As PNG."""
        picture = self._do("Page.captureScreenshot", format="png", captureBeyondViewport=False)["data"]
        target.write_bytes(base64.b64decode(picture))

    def _do(self, method: str, **parameters: object) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise LabError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _message(self, deadline: float) -> dict[str, Any]:
        """The next one, an answer or an event."""
        while b"\0" not in self._unread:
            readable, _, _ = select.select([self._from], [], [], max(deadline - time.monotonic(), 0))
            piece = os.read(self._from, _READ_SIZE) if readable else b""
            if not piece:
                raise LabError("chromium ended" if readable else f"no answer within {_ANSWER_SECONDS} s")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _end(self) -> None:
        """It ends with the pipe that steers it."""
        os.close(self._to)
        os.close(self._from)
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
