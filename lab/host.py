"""One host of the lab: a network namespace, the programs in it, and what its kernel counts.

`ip netns exec` enters the namespace and then becomes the program, so a pid is the program's own. It
mounts the namespace's /sys; /proc/sys/net and /proc/net always show the reader's namespace.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import counters
from lab.capture import capture_command, recording
from lab.errors import LabError
from lab.process import Process

LOSS_PROBES = "/proc/sys/net/ipv4/tcp_early_retrans"
PATIENCE = "5s"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of layer 2 since the interface was made; a superpacket counts its headers once."""

    received: int
    sent: int


class Host:
    """`directory` takes the logs of what is started here."""

    def __init__(self, name: str, namespace: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.directory = directory
        self.processes: list[Process] = []

    @property
    def state_directory(self) -> Path:
        """Of the daemons; the first start of one makes it."""
        return self.directory / "state"

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30,
        check: bool = True,
        input: str | bytes = b"",  # noqa: A002 - the name subprocess.run has
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. Output is UTF-8; other bytes come as surrogate escapes, and line ends stay as they
        are. Raises LabError, showing the output, on a timeout (seconds) and, with `check`, on failure.
        """
        sent = input.encode("utf-8", "surrogateescape") if isinstance(input, str) else input
        try:
            done = subprocess.run(
                self._inside(argv), input=sent, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            shown = _text(error.stdout or b"") + _text(error.stderr or b"")
            raise LabError(f"{self.name}: {' '.join(argv)} took over {timeout} s\n{shown}") from None
        result = subprocess.CompletedProcess(
            list(argv), done.returncode, _text(done.stdout), _text(done.stderr)
        )
        if check and done.returncode != 0:
            shown = result.stdout + result.stderr
            raise LabError(f"{self.name}: {' '.join(argv)} ended with {done.returncode}\n{shown}")
        return result

    def start(
        self, argv: Sequence[str], *, name: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Run in the background until stopped, or until the lab goes down. Each start has a log of its own,
        `<directory>/<name>-<count>.log`, the name being the program's unless given.
        """
        stem = name or Path(argv[0]).name
        log = unused_path(self.directory, stem, ".log")
        process = Process(self._inside(argv), log, environment)
        self.processes.append(process)
        return process

    def counters(self) -> dict[str, int]:
        """The kernel's protocol counters, such as `TcpRetransSegs` and `TcpExtTCPTimeouts`."""
        return counters.parse(self.run(["cat", "/proc/net/snmp", "/proc/net/netstat"]).stdout)

    def counters_since(self, before: Mapping[str, int]) -> dict[str, int]:
        """Counters that changed since, and by how much."""
        return counters.increase(before, self.counters())

    def interface_bytes(self, interface: str = "eth0") -> Traffic:
        shown = self.run(["ip", "-json", "-statistics", "link", "show", "dev", interface]).stdout
        statistics = json.loads(shown)[0]["stats64"]
        return Traffic(received=statistics["rx"]["bytes"], sent=statistics["tx"]["bytes"])

    def sysctl(self, name: str, value: str | int) -> None:
        """Set one of the namespace's own: `net.ipv4.conf.all.rp_filter`. (A dot in an interface's name
        would be a slash, as sysctl(8) has it.)
        """
        path = "/proc/sys/" + name.translate(str.maketrans("./", "/."))
        self.run(["tee", path], input=str(value))

    @contextmanager
    def patient_tcp(self) -> Iterator[None]:
        """New connections of the host retransmit nothing on mere suspicion: they time out late, and send no
        tail loss probes (RFC 8985 section 7), which go out after a few ms without an acknowledgment; cores
        that all hosts share are sometimes busy for as long. The host has a default route.
        """
        route = self.run(["ip", "-4", "route", "show", "default"]).stdout.split()
        probes = self.run(["cat", LOSS_PROBES]).stdout
        try:
            self.run(["tee", LOSS_PROBES], input="0")
            self.run(["ip", "route", "change", *route, "rto_min", PATIENCE])
            yield
        finally:
            self.run(["ip", "route", "change", *route])
            self.run(["tee", LOSS_PROBES], input=probes)

    @contextmanager
    def capture(
        self, interface: str = "eth0", filter_expression: str = "", *, snap_bytes: int = 0
    ) -> Iterator[Path]:
        """The pcap file with what crosses the interface meanwhile: complete once the block is left.
        0 as `snap_bytes` keeps whole packets.
        """
        path = unused_path(self.directory, interface, ".pcap")
        command = capture_command(path, interface, filter_expression, snap_bytes)
        with recording(lambda: self.start(command, name=f"tcpdump-{interface}"), path):
            yield path

    def stop_all(self) -> None:
        """SIGTERM to everything started here, at once, then the wait for each."""
        for process in self.processes:
            process.begin_stop()
        for process in self.processes:
            process.stop()

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]


def unused_path(directory: Path, stem: str, suffix: str) -> Path:
    """`<stem>-<count><suffix>`, with the first count that names no file yet."""
    count = 1
    while (path := directory / f"{stem}-{count}{suffix}").exists():
        count += 1
    return path


def _text(output: bytes) -> str:
    return output.decode("utf-8", "surrogateescape")
