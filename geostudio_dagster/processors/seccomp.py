"""A filter of system calls: what no script needs and what other limits do not bound.

Refused are new namespaces, mounts, tracing, keys, kernel programs and modules; sockets other than
local and internet ones (a virtual machine's sockets reach the host whatever the network namespace
is); memory and disk space that no limit counts (what System V shares, anonymous shared memory,
fallocate); and whatever came to the kernel later than these lists.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_NEW_NAMESPACES = 0x7E020000
_SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

# What came to the kernel after the lists below were made; also all x32 calls.
_FIRST_UNJUDGED = 463

# The same numbers on every machine: new mounts, io_uring, clone3, pidfd_getfd, memfd_secret.
_COMMON = dict.fromkeys((*range(425, 434), 435, 438, 442, 447), errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of the system calls on one kind of processor."""

    audit: int
    clone: int
    socket: int
    fallocate: int
    missing: tuple[int, ...]  # memfd_create, shmget, msgget, semget: as if the kernel had none
    refused: tuple[int, ...]


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        clone=56,
        socket=41,
        fallocate=285,
        missing=(319, 29, 68, 64),
        refused=(
            *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(165, 166, 155, 161, 272, 308),  # mount, umount2, pivot_root, chroot, unshare, setns
            *(167, 168, 169, 175, 176, 313, 246, 320),  # swap, reboot, modules, kexec
            *(248, 249, 250, 321, 323, 298, 300),  # keys, bpf, userfaultfd, perf, fanotify
            *(303, 304, 163, 179, 103, 172, 173, 154),  # handles, acct, quota, syslog, ports, ldt
        ),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        clone=220,
        socket=198,
        fallocate=47,
        missing=(279, 194, 186, 190),
        refused=(
            *(117, 270, 271, 272, 40, 39, 41, 51, 97, 268),
            *(224, 225, 142, 105, 106, 273, 104, 294),
            *(217, 218, 219, 280, 282, 241, 262, 264, 265, 89, 60, 116),
        ),
    ),
}


def filter_program() -> bytes | None:
    """The filter as the kernel takes it (classic BPF), or None on an unknown kind of processor."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return None
    failures = dict.fromkeys(machine.refused, errno.EPERM)
    failures |= dict.fromkeys(machine.missing, errno.ENOSYS)
    failures |= _COMMON | {machine.fallocate: errno.EOPNOTSUPP}
    lines = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _FIRST_UNJUDGED),
        (_RETURN, 0, 0, _FAIL | errno.ENOSYS),
    ]
    for number, error in sorted(failures.items()):
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | error)]
    lines += _clone(machine.clone)
    lines += _socket(machine.socket)
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _clone(number: int) -> list[tuple[int, int, int, int]]:
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _socket(number: int) -> list[tuple[int, int, int, int]]:
    count = len(_SOCKET_FAMILIES)
    allowed = [(_EQUAL, count - place, 0, family) for place, family in enumerate(_SOCKET_FAMILIES)]
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *allowed,
        (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
