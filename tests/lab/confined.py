"""A program that confines itself as the units have systemd do it, and becomes another one.

    confined.py COMMAND...

MemoryDenyWriteExecute: nothing that is or was writable becomes executable (PR_SET_MDWE, kernel 6.3).
RestrictAddressFamilies: sockets of other families than AF_UNIX, AF_INET, AF_INET6, AF_NETLINK and AF_PACKET
are refused (a seccomp filter). Whoever has no CAP_SYS_ADMIN must have no_new_privs for that.
"""

import ctypes
import errno
import os
import socket
import struct
import sys

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
_LOAD_WORD, _JUMP_EQUAL, _RETURN = (
    0x20,
    0x15,
    0x06,
)  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16  # struct seccomp_data, little endian
_SOCKET = {"x86_64": 41, "aarch64": 198}
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)
_INSTRUCTION = struct.Struct("=HBBI")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_families() -> None:
    ahead = len(_FAMILIES)
    code = [
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
        (_JUMP_EQUAL, 0, ahead + 2, _SOCKET[os.uname().machine]),
        (_LOAD_WORD, 0, 0, _FIRST_ARGUMENT_AT),
        *((_JUMP_EQUAL, ahead - at, 0, int(family)) for at, family in enumerate(_FAMILIES)),
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
    packed = b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)
    program = _Program(len(code), packed)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def _prctl(*arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {arguments[0]}")


def main() -> None:
    _prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
    refuse_families()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
