"""The packetbridge's options, and how they override its configuration file."""

import argparse
from typing import Any

from common.config import DEFAULT_INDEX, DEFAULT_VIP, ConfigError
from common.options import Parser, Setting, add_host_options, put_host_options, put_settings
from common.toml import Document
from packetbridge.document import LimitKeys, PacketbridgeKeys

_DESCRIPTION = (
    "Take over connections from a balancer on the node that serves them: open each to the local server as"
    " if by the client, and send the server's replies to the client as the virtual IP."
)
_DEFAULT_VIP = f"{DEFAULT_INDEX}={DEFAULT_VIP}"
_LISTEN = Setting("--listen", ("listen",), PacketbridgeKeys, "ADDR")
_BACKEND = Setting("--backend", ("backend",), PacketbridgeKeys, "ADDR:PORT")
_OTHERS = (
    Setting("--max-flows", ("limits", "flows"), LimitKeys, "N"),
    Setting("--adopt", ("adopt",), PacketbridgeKeys),
)


def make_parser() -> Parser:
    parser = Parser("packetbridge", _DESCRIPTION)
    for setting in (_LISTEN, _BACKEND):
        parser.add_setting(setting)
    parser.explain(
        "--vip",
        _DEFAULT_VIP,
        "a virtual IP and port by the DSCP that stands for it, and its backend if it is not that of"
        " --backend; repeat it for more",
        metavar="DSCP=ADDR[:PORT][@ADDR:PORT]",
        action="append",
    )
    for setting in _OTHERS:
        parser.add_setting(setting)
    add_host_options(parser, PacketbridgeKeys)
    return parser


def put(document: Document, options: argparse.Namespace) -> None:
    """Write options over what the file says; where nothing names a VIP, the default one is served."""
    if hasattr(options, "vip"):
        _put_vips(document, options.vip)
    elif hasattr(options, "backend"):
        _put_backend(document, options.backend)
    if not names_vips(document):
        document.tables["vip"] = [{"dscp": DEFAULT_INDEX, "vip": str(DEFAULT_VIP)}]
    put_settings(document, options, (_LISTEN, _BACKEND, *_OTHERS))
    put_host_options(document, options, PacketbridgeKeys)


def names_vips(document: Document) -> bool:
    """Whether it says which VIPs are served."""
    mapped = document.tables.get("vip-map")
    return bool(document.array("vip")) or (isinstance(mapped, dict) and "backend" in mapped)


def _put_backend(document: Document, backend: str) -> None:
    """--backend overrides that of the one VIP in the file."""
    vips = document.array("vip")
    own = any("backend" in vip for vip in vips)
    if own and len(vips) > 1:
        raise document.error(
            (), f"--backend is for one VIP, but there are {len(vips)} here: change the file instead"
        )
    if own:
        document.put(("vip", 0, "backend"), backend, "--backend", backend)


def _put_vips(document: Document, texts: list[str]) -> None:
    vips: list[dict[str, Any]] = []
    document.put(("vip",), vips, "--vip", "")
    for at, text in enumerate(texts):
        index, equals, rest = text.partition("=")
        if not equals:
            raise ConfigError(f"--vip {text!r} is not DSCP=ADDR[:PORT], such as {_DEFAULT_VIP}")
        vip, sign, backend = rest.partition("@")
        vips.append({})
        number = int(index) if index.isascii() and index.isdigit() and len(index) < 9 else index
        document.put(("vip", at, "dscp"), number, "DSCP", index)
        document.put(("vip", at, "vip"), vip, f"--vip {text}", vip)
        if sign:
            document.put(("vip", at, "backend"), backend, f"--vip {text}", backend)
