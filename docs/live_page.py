"""Writes docs/live-page.png, the live page of a balancer in the lab: ``python -m docs.live_page``.

Needs root and Chromium, and takes two minutes. One node is drained meanwhile, and another one's server stops.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab import Lab, LabError, Process
from tests.lab import checked
from tests.lab.browser import Browser

PICTURE = Path(__file__).parent / "live-page.png"
_SIZE = {"width": 1280, "height": 880}
_SECONDS = 122
"""The page keeps two minutes."""
_DRAINED_AFTER, _STOPPED_AFTER = 60, 90
_URL = "http://127.0.0.1:9713/"
_CLIENTS = 12


def main(arguments: Sequence[str]) -> int:
    target = Path(arguments[0]) if arguments else PICTURE
    try:
        with Lab() as lab:
            for node in lab.topology.nodes:
                lab.start_packetbridge(node.name)
            checked.start(lab, health={"interval": 1.0, "timeout": 0.5, "fall": 3})
            checked.await_all_up(lab)
            _load(lab)
            with Browser(lab.balancer, _URL, **_SIZE) as browser:
                _show(lab, browser, target)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _load(lab: Lab) -> Process:
    """Downloads of a megabyte, a path and a connection each."""
    url = f"http://{lab.topology.service.vip}/slow/file/[2000000-2999999]/1m"
    quiet = ["--silent", "--no-progress-meter", "--output", "/dev/null"]
    parallel = ["--parallel", "--parallel-max", str(_CLIENTS), "--header", "Connection: close"]
    return lab.client.start(["curl", *quiet, *parallel, url])


def _show(lab: Lab, browser: Browser, target: Path) -> None:
    began = time.monotonic()

    def wait_until(seconds: float) -> None:
        time.sleep(max(began + seconds - time.monotonic(), 0))

    wait_until(_DRAINED_AFTER)
    lab.tool(lab.balancer, "drain", "node2")
    wait_until(_STOPPED_AFTER)
    lab.nginx["node3"].stop()
    wait_until(_SECONDS)
    browser.take_picture(target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
