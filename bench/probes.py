"""Probes: what the machine gives at this moment, without inmem.

Machines are shared and noisy, so a rate of inmem means something only beside
a probe that ran in the same round. Each probe is a function `(seconds) ->
operations per second`, or gives one for as long as its block lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import multiprocessing
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import zmq

VALUE = "x" * 50
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())  # the system call; None: not known here
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_FUTEX_STOP = 1 << 31
_FUTEX_PATIENCE_S = 1  # between two looks whether the other side lives
_CHECK_EVERY = 64  # operations between two looks at the clock


def rate(operation: Callable[[], Any], seconds: float) -> float:
    """How often a second an operation can be done."""
    count = 0
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        for _ in range(_CHECK_EVERY):
            operation()
        count += _CHECK_EVERY
    return count / (now - began) if now > began else 0.0


@contextlib.contextmanager
def lmdb_get(keys: int = 10_000) -> Iterator[Callable[[float], float]]:
    """LMDB in this process: begin, get, decode of a 50-byte value; of random keys, as for the stores."""
    directory = tempfile.mkdtemp(prefix="inmem-probe-", dir="/dev/shm")
    try:
        env = lmdb.open(directory, map_size=max(1 << 28, keys * 256), sync=False, max_spare_txns=1)
        with env.begin(write=True) as txn:
            packed = msgpack.packb(VALUE)
            txn.cursor().putmulti(((b"key-%08d" % n, packed) for n in range(keys)), append=True)
        chosen = random.Random(0).choices(range(keys), k=min(keys, 50_000))
        following = itertools.cycle([b"key-%08d" % n for n in chosen])

        def get() -> None:
            msgpack.unpackb(env.begin().get(next(following)))

        yield lambda seconds: rate(get, seconds)
        env.close()
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def lmdb_put() -> Iterator[Callable[[float], float]]:
    """LMDB in this process: begin, encode, put of a 50-byte value, commit, in memory and without any sync."""
    directory = tempfile.mkdtemp(prefix="inmem-probe-", dir="/dev/shm")
    try:
        env = lmdb.open(directory, map_size=1 << 28, sync=False)
        keys = [b"key-%05d" % n for n in range(10_000)]
        with env.begin(write=True) as txn:
            for key in keys:
                txn.put(key, msgpack.packb(VALUE))
        following = itertools.cycle(keys[::7])

        def put() -> None:
            with env.begin(write=True) as txn:
                txn.put(next(following), msgpack.packb(VALUE))

        yield lambda seconds: rate(put, seconds)
        env.close()
    finally:
        shutil.rmtree(directory)


def msgpack_encode(seconds: float) -> float:
    """Encoding of a 50-byte value."""
    return rate(lambda: msgpack.packb(VALUE), seconds)


def msgpack_decode(seconds: float) -> float:
    """Decoding of a 50-byte value."""
    packed = msgpack.packb(VALUE)
    return rate(lambda: msgpack.unpackb(packed), seconds)


class _Words:
    """Two words of a file that two processes have mapped, and waits for them to change."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._words = (ctypes.c_uint32 * 2).from_buffer(self._map)
        self._call = ctypes.CDLL(None).syscall
        self._call.restype = ctypes.c_long
        self._call.argtypes = [ctypes.c_long, ctypes.c_void_p, *[ctypes.c_long] * 2, ctypes.c_void_p]
        self._timeout = (ctypes.c_long * 2)(_FUTEX_PATIENCE_S, 0)

    def say(self, word: int, value: int) -> None:
        """Write a word and wake who waits for it."""
        self._words[word] = value
        self._call(FUTEX, ctypes.addressof(self._words) + 4 * word, _FUTEX_WAKE, 1, None)

    def wait(self, word: int, known: int) -> int:
        """Sleep until a word is another one, or for a while; what it is."""
        if self._words[word] == known:
            self._call(
                FUTEX, ctypes.addressof(self._words) + 4 * word, _FUTEX_WAIT, known,
                ctypes.addressof(self._timeout),
            )
        return self._words[word]

    def close(self) -> None:
        """Unmap."""
        del self._words
        self._map.close()


def _futex_echo(path: str) -> None:
    os.setsid()
    words, known = _Words(path), 0
    starter = os.getppid()
    while os.getppid() == starter:
        asked = words.wait(0, known)
        if asked == _FUTEX_STOP:
            break
        if asked != known:
            known = asked
            words.say(1, known)
    words.close()


@contextlib.contextmanager
def futex_echo() -> Iterator[Callable[[float], float]]:
    """A round trip between two processes that sleep and wake each other, with nothing else in it."""
    handle, path = tempfile.mkstemp(prefix="inmem-probe-", dir="/dev/shm")
    os.truncate(handle, mmap.PAGESIZE)
    os.close(handle)
    process = multiprocessing.get_context("spawn").Process(target=_futex_echo, args=(path,), daemon=True)
    process.start()
    words = _Words(path)
    numbers = itertools.cycle(range(1, _FUTEX_STOP))

    def round_trip() -> None:
        number = next(numbers)
        words.say(0, number)
        answered = words.wait(1, 0)
        while answered != number:
            if not process.is_alive():
                raise RuntimeError("the echo has ended")
            answered = words.wait(1, answered)

    try:
        round_trip()
        yield lambda seconds: rate(round_trip, seconds)
    finally:
        words.say(0, _FUTEX_STOP)
        process.join(10)
        words.close()
        os.unlink(path)


def _echo(endpoint: str) -> None:
    os.setsid()
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(endpoint)
    while True:
        peer, frame = socket.recv_multipart()
        if frame == b"stop":
            break
        socket.send_multipart((peer, frame))
    socket.close(0)
    context.term()


@contextlib.contextmanager
def zmq_echo() -> Iterator[Callable[[float], float]]:
    """A pyzmq round trip of 100 bytes between two processes over ipc."""
    directory = tempfile.mkdtemp(prefix="inmem-probe-")
    endpoint = f"ipc://{directory}/echo"
    process = multiprocessing.get_context("spawn").Process(target=_echo, args=(endpoint,), daemon=True)
    process.start()
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    message = b"x" * 100

    def round_trip() -> None:
        socket.send(message)
        socket.recv()

    try:
        round_trip()
        yield lambda seconds: rate(round_trip, seconds)
    finally:
        socket.send(b"stop")
        process.join(10)
        socket.close(0)
        context.term()
        shutil.rmtree(directory)


@contextlib.contextmanager
def fdatasync(directory: Path) -> Iterator[Callable[[float], float]]:
    """A write of 200 bytes and an fdatasync."""
    path = directory / "probe"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def write_and_sync() -> None:
        os.write(fd, b"x" * 200)
        os.fdatasync(fd)

    def measure(seconds: float) -> float:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            write_and_sync()
            count += 1
        return count / (time.perf_counter() - began)

    try:
        yield measure
    finally:
        os.close(fd)
        path.unlink()
