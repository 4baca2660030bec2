"""Live streams through the VIP: ffmpeg writes HLS where all nodes find it; players follow while it grows."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Host, Lab, Process
from lab.content import FILES
from lab.process import POLL_SECONDS
from tests.lab.conversation import VIP
from tests.lab.sockets import await_that

pytestmark = pytest.mark.root

STREAMS = {"one": 400, "two": 500, "three": 600, "four": 700}
"""Each has a tone of its own, in Hz."""
PLAYERS_EACH = 2
MOST_SECONDS = 100
ENDED_BY_SIGNAL = 255
SEGMENTS = 4
PLAYLIST = "index.m3u8"
REQUEST = re.compile(r'"GET /live/(\w+)/')


@pytest.fixture
def streaming_lab(engine: str) -> Iterator[Lab]:
    """The nodes also serve /live/, and the first two path segments choose the node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.nginx.FILES", [*FILES, "live/.*"])
        with Lab(engine=engine) as fresh:
            for node in fresh.topology.nodes:
                fresh.start_packetbridge(node.name)
            fresh.start_balancer("--hash-key=segments:2")
            yield fresh


def begin_stream(lab: Lab, name: str, tone: int) -> Process:
    """In real time, in segments of a second, until SIGTERM."""
    directory = lab.content.directory / "live" / name
    directory.mkdir(parents=True)
    picture = ["-re", "-f", "lavfi", "-i", "testsrc=size=320x180:rate=24"]
    sound = ["-re", "-f", "lavfi", "-i", f"sine=frequency={tone}"]
    coding = ["-t", str(MOST_SECONDS), "-c:v", "mpeg2video", "-b:v", "2M", "-g", "24", "-c:a", "mp2"]
    form = ["-f", "hls", "-hls_time", "1", "-hls_list_size", "0", "-hls_playlist_type", "event"]
    target = str(directory / PLAYLIST)
    return lab.router.start(["ffmpeg", "-v", "error", *picture, *sound, *coding, *form, target])


def player(source: str) -> list[str]:
    """Prints a hash of every elementary stream once it has come to the end."""
    begin = ["ffmpeg", "-v", "error", "-live_start_index", "0", "-i", source]
    return [*begin, "-map", "0", "-c", "copy", "-f", "streamhash", "-"]


def begun(playlist: Path, encoder: Process) -> bool:
    while not playlist.exists():
        if not encoder.running:
            return False
        time.sleep(POLL_SECONDS)
    return True


def requested(lab: Lab) -> Counter[str]:
    """Requests by stream."""
    found: Counter[str] = Counter()
    for (stream, _), number in requests_of(lab).items():
        found[stream] += number
    return found


def requests_of(lab: Lab) -> Counter[tuple[str, str]]:
    """By stream and node."""
    return Counter(
        (stream, name)
        for name, server in lab.nginx.items()
        for stream in REQUEST.findall(server.access_log.read_text())
    )


def test_players_of_live_streams_get_every_frame_each_stream_from_one_node(streaming_lab: Lab) -> None:
    lab, client = streaming_lab, streaming_lab.client
    live = lab.content.directory / "live"
    encoders = {name: begin_stream(lab, name, tone) for name, tone in STREAMS.items()}
    players: list[tuple[str, Process]] = []
    for name, encoder in encoders.items():
        assert begun(live / name / PLAYLIST, encoder), encoder.read_log()
        command = player(f"{VIP}/live/{name}/{PLAYLIST}")
        players += [(name, client.start(command)) for _ in range(PLAYERS_EACH)]
    await_that(lambda: min(requested(lab)[name] for name in STREAMS) >= PLAYERS_EACH * (SEGMENTS + 1), 60)
    for encoder in encoders.values():
        assert encoder.running, encoder.read_log()
        assert encoder.stop(30) == ENDED_BY_SIGNAL, encoder.read_log()
    for _, process in players:
        assert process.wait(60) == 0, process.read_log()
    for name, process in players:
        assert process.read_log() == written(lab.router, live / name / PLAYLIST)
    requests = requests_of(lab)
    assert {stream for stream, _ in requests} == set(STREAMS)
    assert len(requests) == len(STREAMS)
    assert len({node for _, node in requests}) > 1
    for (name, _), number in requests.items():
        assert number >= PLAYERS_EACH * (len(list((live / name).glob("*.ts"))) + 1)


def written(host: Host, playlist: Path) -> str:
    """What a player prints that reads the files themselves."""
    shown = host.run(player(str(playlist))).stdout
    assert shown.count("SHA256=") == 2
    return shown
