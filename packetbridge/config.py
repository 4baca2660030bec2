"""What a packetbridge is configured to do: its file and options, validated as a whole."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from common import keyring, vip_map
from common.config import Endpoint, HostConfig
from common.options import host_config, parse_command, read_document, restart_only_of_host
from common.toml import Document
from common.vip_map import VipMap
from packetbridge import options as packetbridge_options
from packetbridge.core.service import Limits, Timeouts
from packetbridge.document import TEXT_TYPES, PacketbridgeKeys


@dataclass(frozen=True, slots=True)
class VipConfig:
    index: int
    """The VIP index, 1 to 63, which travels as the DSCP."""
    vip: Endpoint
    backend: Endpoint


@dataclass(frozen=True, slots=True)
class PacketbridgeConfig:
    bridge: IPv4Address
    vips: tuple[VipConfig, ...]
    limits: Limits
    timeouts: Timeouts
    adopt: bool
    """Whether listeners may be given connections without a handshake."""
    host: HostConfig
    path: Path | None
    """The configuration file, if there is one."""
    is_of_file: bool
    """Whether the file names what is served; else options and their defaults do."""
    warnings: tuple[str, ...] = ()
    """What an operator should know of it, one line each."""
    is_removal: bool = False
    """Nothing is to be served: what an earlier run left at work is to be removed."""


def load(arguments: Sequence[str] | None = None) -> PacketbridgeConfig:
    """Of the command's arguments and the file as it is now. `ConfigError` where something is wrong."""
    return _load(packetbridge_options.make_parser().parse_args(arguments))


def parse(arguments: Sequence[str] | None = None) -> PacketbridgeConfig:
    """`load` for a command that starts: see `parse_command`."""
    return parse_command(packetbridge_options.make_parser(), arguments, _load, _checked)


def restart_only(old: PacketbridgeConfig, new: PacketbridgeConfig) -> list[str]:
    """The keys that differ and that a running packetbridge does not change."""
    names = {"bridge": "listen", "adopt": "adopt", "limits": "limits", "timeouts": "timeouts"}
    differing = [key for name, key in names.items() if getattr(old, name) != getattr(new, name)]
    return restart_only_of_host(old.host, new.host) + differing


def _load(options: argparse.Namespace) -> PacketbridgeConfig:
    document = read_document("packetbridge", options)
    is_of_file = packetbridge_options.names_vips(document)
    packetbridge_options.put(document, options)
    keys = document.decode(PacketbridgeKeys, TEXT_TYPES)
    needs_map = keys.vip_map.backend is not None or any(vip.dscp == "map" for vip in keys.vip)
    found = vip_map.read(keys.vip_map.files) if needs_map else VipMap({}, ())
    vips = tuple(_vips(document, keys, found))
    if not vips:
        raise document.error((), "there is no VIP to serve: give a [[vip]], or fill the files of vip-map")
    document.require_distinct((), "VIPs", "the DSCP", [vip.index for vip in vips])
    document.require_distinct((), "VIPs", "the address and port", [vip.vip for vip in vips])
    document.require_distinct((), "VIPs", "the backend", [vip.backend for vip in vips])
    if keys.listen in {vip.vip.address for vip in vips}:
        raise document.error(
            ("listen",), f"{keys.listen} is the address of a VIP: it must be one of this host alone"
        )
    return PacketbridgeConfig(
        bridge=keys.listen,
        vips=vips,
        limits=Limits(**msgspec.structs.asdict(keys.limits)),
        timeouts=Timeouts(**msgspec.structs.asdict(keys.timeouts)),
        adopt=keys.adopt == "auto",
        host=host_config(document, keys, "packetbridge"),
        path=document.path,
        is_of_file=is_of_file,
        warnings=found.warnings,
        is_removal=hasattr(options, "remove"),
    )


def _checked(config: PacketbridgeConfig) -> str:
    if not config.host.insecure:
        keyring.load(config.host.key_file)
    return f"ok, {len(config.vips)} VIP{'s' * (len(config.vips) != 1)}"


def _vips(document: Document, keys: PacketbridgeKeys, found: VipMap) -> Iterator[VipConfig]:
    """Those of the file and, if it wants them, those of the map that it does not name."""
    for at, entry in enumerate(keys.vip):
        vip = entry.vip.value
        index = found.indices.get(vip.address) if entry.dscp == "map" else entry.dscp
        if not isinstance(index, int):
            raise document.error(
                ("vip", at), f"dscp is to come out of vip-map, but none of its files names {vip.address}"
            )
        yield VipConfig(index, vip, (entry.backend or keys.backend).value)
    if keys.vip_map.backend is not None:
        named = {entry.vip.value.address for entry in keys.vip}
        for address, index in found.indices.items():
            if address not in named:
                vip = Endpoint(address, keys.vip_map.port)
                yield VipConfig(index, vip, keys.vip_map.backend.of(vip))
