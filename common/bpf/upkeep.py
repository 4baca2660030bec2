"""What every daemon does for its programs as long as it runs: their clock, the handoff keys, the sweep."""

import trio

from common.bpf import keys as bpf_keys
from common.bpf.clock import keep_clock, set_clock
from common.bpf.maps import ArrayMap, HashMap
from common.bpf.residence import Residence
from common.bpf.sweep import Sweeper
from common.keyring import KeySource


class Upkeep:
    def __init__(self, residence: Residence, keys: KeySource) -> None:
        """Clock and keys are right from now on, as far as `run` and `take_keys` are called."""
        self._keys = keys
        self._clock = ArrayMap(residence.map("clock"))
        self._handoff_keys = HashMap(residence.map("handoff_keys"))
        self._sweeper = Sweeper(residence.program("sweep"))
        set_clock(self._clock)
        self.take_keys()

    def take_keys(self) -> None:
        """They may have changed."""
        bpf_keys.write(self._handoff_keys, self._keys.keyring)

    async def run(self) -> None:
        """For ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_clock, self._clock)
            nursery.start_soon(self._sweeper.run)
