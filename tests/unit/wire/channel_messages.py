"""Datagrams of the channel, written down byte by byte: nothing here imports `common.wire`."""

from tests.unit.wire.packets import siphash

HANDOFF_KEY = bytes(range(16))
"""Its last byte is odd: key id 1."""
NODE = bytes([192, 168, 33, 20])
NONCE = 0x0123456789ABCDEF
TIME = 0x6553F100
SIZE = 1200

ASK_REPORT, REPORT, ASK_FLOW, FLOW, REFUSAL = 1, 2, 3, 4, 15

REPORT_BODY = bytes.fromhex(
    "1c 00 02 02"  # TOS 0x1c, ebpf, two VIPs
    "01f4 0000"  # 500 ms
    "0000 0e10"  # up for an hour
    "0000 0000 0001 0000"  # 65536 bytes to clients
) + b"0.1.0".ljust(24, b"\0")
VIPS = bytes.fromhex(
    "01 00 0050 c0a8210a 0000000c"  # 192.168.33.10:80, 12 flows
    "07 00 01bb c0a8210b 00000000"  # 192.168.33.11:443
)
QUESTION_BODY = bytes.fromhex("01 00 c000 cb007107")  # 203.0.113.7:49152 to VIP 1
DETAILS = b'{"seq_delta":4294967295,"adopted":true}'
FLOW_BODY = b"established\0\0\0\0\0" + bytes.fromhex("000005dc 000000fa") + DETAILS


def channel_key(handoff_key: bytes = HANDOFF_KEY) -> bytes:
    return siphash(handoff_key, b"l3dsr channel 0") + siphash(handoff_key, b"l3dsr channel 1")


def untagged(
    kind: int, body: bytes, *, flags: int = 0x80, time: int = TIME, node: bytes = NODE, nonce: int = NONCE
) -> bytes:
    header = b"\x4c\x33" + bytes([0x10 | kind, flags]) + time.to_bytes(4, "big") + nonce.to_bytes(8, "big")
    if kind in (ASK_REPORT, ASK_FLOW):
        body += bytes(SIZE - 28 - len(body))
    return header + node + body


def tagged(signed: bytes, handoff_key: bytes = HANDOFF_KEY) -> bytes:
    return signed + siphash(channel_key(handoff_key), signed)


def refusal(reason: int, *, version: int = 1, time: int = TIME, nonce: int = NONCE) -> bytes:
    signed = untagged(REFUSAL, bytes([reason, 0, 0, 0]), flags=0, time=time, nonce=nonce)
    return signed[:2] + bytes([version << 4 | REFUSAL]) + signed[3:]
