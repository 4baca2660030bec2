"""A daemon to be killed: attaches `drop` to an interface's ingress, says so, and waits.

python -m tests.bpf.killed OBJECT IFINDEX tcx|clsact [PIN-DIRECTORY]
"""

import signal
import sys
from pathlib import Path

from common.bpf.attach import Direction, Hook, TcxLink, attach
from common.bpf.objects import BpfObject
from common.bpf.pins import PinDirectory

HANDLE = 1


def main(path: str, ifindex: str, way: str, *pins: str) -> None:
    loaded = BpfObject(Path(path))
    hook = Hook(int(ifindex), Direction.INGRESS)
    attached = attach(hook, loaded.program("drop"), HANDLE, tcx=way == "tcx")
    for each in pins:
        directory = PinDirectory(Path(each))
        directory.create()
        assert isinstance(attached, TcxLink)
        directory.pin("link", attached.descriptor)
        directory.pin("flows", loaded.map("flows"))
    print("attached", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
