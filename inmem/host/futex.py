"""Sleeping on words of memory, until another thread or process says that they have changed.

futex(2) and futex_waitv(2) of Linux. Each call first compares the words with
the values that the caller has seen: so nobody sleeps who was too late to be
woken. The memory may be shared by processes; it is the same word wherever it
is mapped.

Plain stores become visible in program order on x86-64 only. On other
processors nothing here is used.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import time
from collections.abc import Sequence
from typing import Any, Final

SUPPORTED: Final = os.uname().machine == "x86_64"
AT_ONCE: Final = 128  # words on which one call can sleep

_SYS_FUTEX: Final = 202
_SYS_FUTEX_WAITV: Final = 449  # Linux 5.16
_WAIT: Final = 0
WAKE: Final = 1
_SIZE_U32: Final = 2
_ALL: Final = (1 << 31) - 1
_POLL_S: Final = 0.002  # where the kernel cannot sleep on several words
_ENDED: Final = (0, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR)
_SECOND_NS: Final = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Slept(ctypes.Structure):  # a word of `futex_waitv`
    _fields_ = [
        ("value", ctypes.c_uint64), ("address", ctypes.c_uint64), ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


_ARGUMENTS: Any = [
    ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ctypes.c_uint,
]
_wait = ctypes.CDLL(None).syscall  # lets other threads run while it sleeps
_wait.restype, _wait.argtypes = ctypes.c_long, _ARGUMENTS
_wait_any = ctypes.CDLL(None, use_errno=True).syscall
_wait_any.restype, _wait_any.argtypes = ctypes.c_long, _ARGUMENTS
_wake = ctypes.PyDLL(None).syscall  # does not sleep, so it keeps the interpreter lock
_wake.restype, _wake.argtypes = ctypes.c_long, _ARGUMENTS[:4]  # the call has no use for the others
wake_call: Final = functools.partial(_wake, _SYS_FUTEX)  # of an address, WAKE and a count: without a frame
_has_waitv = True  # until the kernel says that it has not


def wait(address: int, value: int, timeout_us: int) -> None:
    """Sleep while a word has a value, for less than a second; also wakes for nothing."""
    timeout = _Timespec(0, timeout_us * 1000)
    _wait(_SYS_FUTEX, address, _WAIT, value, ctypes.addressof(timeout), None, 0)


def wake(address: int, count: int = _ALL) -> int:
    """Wake those who sleep on a word, at most so many; how many that were."""
    woken: int = _wake(_SYS_FUTEX, address, WAKE, count)
    return max(0, woken)


def wait_any(addresses: Sequence[int], values: Sequence[int], timeout_s: float) -> None:
    """Sleep while each of at most AT_ONCE words has its value; also wakes for nothing."""
    global _has_waitv
    deadline_ns = time.monotonic_ns() + int(timeout_s * _SECOND_NS)
    if _has_waitv:
        waiters = (_Slept * len(addresses))(
            *(_Slept(value, address, _SIZE_U32, 0) for address, value in zip(addresses, values, strict=True))
        )
        until = _Timespec(*divmod(deadline_ns, _SECOND_NS))
        ctypes.set_errno(0)
        _wait_any(
            _SYS_FUTEX_WAITV, ctypes.addressof(waiters), len(addresses), 0, ctypes.addressof(until),
            time.CLOCK_MONOTONIC, 0,
        )
        if ctypes.get_errno() in _ENDED:
            return
        _has_waitv = False  # the kernel has no such call, or a container does not allow it
    words = [ctypes.c_uint32.from_address(address) for address in addresses]
    while time.monotonic_ns() < deadline_ns and [word.value for word in words] == [*values]:
        time.sleep(_POLL_S)
