"""BPF_PROG_TEST_RUN: a loaded program run once, on a packet at hand or without any.

A tc program gets the packet with 14 bytes of link header. What it sends by a redirect is not sent, and there
is no partial checksum.
"""

import ctypes
import os
import struct
from dataclasses import dataclass

from common.bpf import libbpf
from common.bpf.errors import BpfError

_ROOM = 4096  # that a program may add
_SK_BUFF = struct.Struct("=8xI20xIII4x5I84xQII8xI12x")  # struct __sk_buff, tstamp_type left out


@dataclass(frozen=True, slots=True)
class SkBuff:
    """The fields of struct __sk_buff that may be given. ``ifindex`` is of the thread's network namespace."""

    mark: int = 0
    priority: int = 0
    ingress_ifindex: int = 0
    ifindex: int = 0
    cb: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    tstamp: int = 0
    wire_len: int = 0
    gso_segs: int = 0
    gso_size: int = 0


@dataclass(frozen=True, slots=True)
class PacketRun:
    verdict: int
    """What the program returned, as a signed number."""
    packet: bytes
    """With link header."""
    context: SkBuff
    """``gso_size`` comes back as it was given."""
    nanoseconds: int
    """Of one run, on average."""


def run_packet(program: int, packet: bytes, context: SkBuff | None = None, *, repeat: int = 1) -> PacketRun:
    """Of a tc program, ``repeat`` times: the packet goes on as the last run left it. `BpfError`."""
    given = context or SkBuff()
    before = _SK_BUFF.pack(
        given.mark,
        given.priority,
        given.ingress_ifindex,
        given.ifindex,
        *given.cb,
        given.tstamp,
        given.wire_len,
        given.gso_segs,
        given.gso_size,
    )
    after = ctypes.create_string_buffer(_SK_BUFF.size)
    data = ctypes.create_string_buffer(packet, len(packet))
    out = ctypes.create_string_buffer(len(packet) + _ROOM)
    buffer = ctypes.create_string_buffer(before, len(before))
    options = libbpf.TestRunOptions(
        data_in=ctypes.addressof(data),
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        ctx_in=ctypes.addressof(buffer),
        ctx_size_in=len(before),
        ctx_out=ctypes.addressof(after),
        ctx_size_out=len(after),
        repeat=repeat,
    )
    _run(program, options)
    mark, priority, ingress, ifindex, *cb, tstamp, wire_len, segs, size = _SK_BUFF.unpack(after.raw)
    a, b, c, d, e = cb
    return PacketRun(
        options.retval,
        out.raw[: options.data_size_out],
        SkBuff(mark, priority, ingress, ifindex, (a, b, c, d, e), tstamp, wire_len, segs, size),
        options.duration,
    )


def run_syscall(program: int, context: bytes = b"") -> tuple[int, bytes]:
    """Of a SEC("syscall") program: what it returned, and ``context`` as it left it. `BpfError`."""
    buffer = ctypes.create_string_buffer(context, len(context) or 1)
    options = libbpf.TestRunOptions(
        ctx_in=ctypes.addressof(buffer) if context else None, ctx_size_in=len(context)
    )
    _run(program, options)
    return options.retval, buffer.raw[: len(context)]


def _run(program: int, options: libbpf.TestRunOptions) -> None:
    result = libbpf.library().bpf_prog_test_run_opts(program, options)
    if result < 0:
        raise BpfError(f"the kernel does not run the eBPF program: {os.strerror(-result)}")
