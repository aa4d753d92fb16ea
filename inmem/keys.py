"""Ordered keys: how names become bytes whose order is the order of the data.

Invariant: two different names never give the same key, keys of one run and
primitive are contiguous, and byte order equals name order. This module knows
neither records nor storage.

A key is `prefix 0x00 tag rest`:

    prefix   tenant/app/agent/run    records of one run
             tenant/app/agent        run records and their indices
             tenant/app/agent/@ , tenant/app/@ , tenant/@    shared scopes
    tag      one byte, see TypeTag; tags from 0x10 up are indices
    rest     the name within the primitive

`@` is not allowed in components, so a shared scope never meets a run.
UTF-8 preserves code point order, hence `bytes` order equals `str` order.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import xxhash

from inmem.config import MAX_TAGS
from inmem.errors import InvalidInputError, InvalidKeyError, InvalidRunIdError, LimitError, type_name

MAX_KEY_BYTES: Final = 511  # LMDB's compiled-in limit
MAX_NAME_BYTES: Final = 320  # user keys and cell names: prefix + 320 + index suffix fits 511
MAX_LABEL_BYTES: Final = 128  # tags, event types, trace types: they share an index key with an id
MAX_COMPONENT_CHARS: Final = 32
MAX_RUN_CHARS: Final = 64

_COMPONENT = re.compile(r"[A-Za-z0-9._:-]{1,32}\Z")
_RUN = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_NOT_IN_RUNS = re.compile(r"[^A-Za-z0-9._:-]+")
_SHARED: Final = "@"
_DIGEST_CHARS: Final = 20  # 80 bits: ids of two texts meet by chance once in about 10**12 texts


class TypeTag(IntEnum):
    """The byte after the run prefix: which primitive, or which index, owns the key.

    0x01-0x07 are fixed forever; 0x10 and up are the store's own indices. A
    tag is never used again for another purpose.
    """

    KV = 0x01
    EVENT = 0x02
    STATE = 0x03
    TRACE = 0x04
    RUN = 0x05
    LEASE = 0x06
    JOB = 0x07

    EVENT_BY_TYPE = 0x12
    STATE_MARK = 0x13
    TRACE_BY_TYPE = 0x14
    RUN_BY_STATUS = 0x15
    LEASE_WAITER = 0x16
    JOB_STATE = 0x17
    TRACE_BY_TAG = 0x24
    RUN_BY_TAG = 0x25
    JOB_READY = 0x27
    TRACE_BY_PARENT = 0x34
    RUN_BY_PARENT = 0x35
    JOB_DUE = 0x37
    TRACE_BY_TIME = 0x44
    JOB_DEAD = 0x47
    JOB_BY_KEY = 0x57
    JOB_QUEUE = 0x67
    JOB_CLAIMED = 0x77


_RUN_TAG: Final = bytes([TypeTag.RUN])


class RunId(str):
    """A run's identifier: 1-64 characters of `[A-Za-z0-9._:-]`.

    A plain `str` with the right characters is accepted wherever a run id is;
    this class validates early and makes new ones.

    >>> RunId("triage-7")
    RunId('triage-7')
    >>> len(RunId.new())
    36
    """

    external: str | None = None  # what `from_external` made it of

    def __new__(cls, value: str) -> RunId:
        return super().__new__(cls, check_run_id(value))

    @classmethod
    def from_external(cls, text: str, *, namespace: str = "") -> RunId:
        """A legal id for an id of another system, always the same one for the same text.

        What is readable of the text, and 20 digits of its SHA-256. The text
        may have any length and any characters. The run that `create_run` makes
        of the id keeps the text in its metadata, as `external_id`. `external`
        has it too, but only here: an id that is read from the store is a plain
        `str`. With a `namespace`, equal texts of several systems give several
        ids. It has 1-32 characters of `[A-Za-z0-9._:-]`, and the id begins
        with it. Cost: about 3 µs.

        >>> RunId.from_external("user@example.com/thread 1")
        RunId('user-example.com-thread-1-c468c495289b43e09db7')
        >>> RunId.from_external("user@example.com/thread 1", namespace="crm")
        RunId('crm:user-example.com-thread-1-f0db20b379455cced680')

        Raises:
            InvalidRunIdError: the text is not a `str`, empty, or with a lone surrogate.
            InvalidInputError: the namespace has other characters, or too many.
        """
        if not isinstance(text, str) or not text:
            raise InvalidRunIdError(
                f"text must be a str with something in it, not {shorten(text)}", argument="text"
            )
        prefix = ""
        if namespace != "":
            prefix = f"{_check_component(namespace, 'namespace')}:"
        import hashlib  # the writer and the helpers need it not

        try:
            data = (f"{namespace}\0{text}" if prefix else text).encode()
        except UnicodeEncodeError:
            raise InvalidRunIdError(
                "text has a lone surrogate, which UTF-8 cannot hold", argument="text"
            ) from None
        digest = hashlib.sha256(data).hexdigest()[:_DIGEST_CHARS]
        room = MAX_RUN_CHARS - _DIGEST_CHARS - 1 - len(prefix)
        readable = _NOT_IN_RUNS.sub("-", text).strip("-._:")[:room].rstrip("-._:")
        run_id = str.__new__(cls, f"{prefix}{readable or 'id'}-{digest}")
        run_id.external = str.__str__(text)
        return run_id

    def __repr__(self) -> str:
        return f"RunId({str.__repr__(self)})"

    @classmethod
    def new(cls) -> RunId:
        """A new time-ordered id (UUID version 7, RFC 9562, section 5.7). Cost: about 2 µs."""
        milliseconds = time.time_ns() // 1_000_000
        random = int.from_bytes(os.urandom(10), "big")
        value = (
            (milliseconds & 0xFFFF_FFFF_FFFF) << 80
            | 0x7 << 76
            | (random >> 62 & 0xFFF) << 64
            | 0b10 << 62
            | random & 0x3FFF_FFFF_FFFF_FFFF
        )
        text = f"{value:032x}"
        return str.__new__(cls, "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])))


def check_run_id(value: object, argument: str = "run_id") -> str:
    """The value if it is a valid run id.

    Raises:
        InvalidRunIdError: names the argument and the limit.
    """
    if not isinstance(value, str):
        raise InvalidRunIdError(
            f"{argument} must be a str, not {type_name(value)}", argument=argument
        )
    if not _RUN.match(value):
        raise InvalidRunIdError(
            f"{argument} {shorten(value)} is not 1-{MAX_RUN_CHARS} characters of [A-Za-z0-9._:-]",
            argument=argument,
        )
    # As plain text: of a member of an enum, `str` and f-strings may say something else than it holds.
    return value if type(value) is str else str.__str__(value)


def _check_component(value: object, argument: str) -> str:
    """The value, as plain text, if it is a valid component of a namespace.

    Raises:
        InvalidInputError: names the argument and the limit.
    """
    if not isinstance(value, str) or not _COMPONENT.match(value):
        raise InvalidInputError(
            f"{argument} {shorten(value)} is not 1-{MAX_COMPONENT_CHARS} characters of [A-Za-z0-9._:-]",
            argument=argument,
        )
    return str.__str__(value)


def encode_name(value: object, argument: str = "key", limit: int = MAX_NAME_BYTES) -> bytes:
    """A user's key, cell name, tag or type as bytes.

    Raises:
        InvalidKeyError: not a `str`, empty, over `limit` bytes of UTF-8, or
            with NUL or a lone surrogate in it.
    """
    if not isinstance(value, str):
        raise InvalidKeyError(
            f"{argument} must be a str, not {type_name(value)}", argument=argument
        )
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise InvalidKeyError(
            f"{argument} has a lone surrogate at character {error.start}", argument=argument
        ) from None
    if not data:
        raise InvalidKeyError(f"{argument} must not be empty", argument=argument)
    if len(data) > limit:
        raise InvalidKeyError(
            f"{argument} is {len(data)} bytes of UTF-8, the limit is {limit}", argument=argument
        )
    if 0 in data:  # b"\0" in data takes 20 times as long
        raise InvalidKeyError(f"{argument} must not contain NUL", argument=argument)
    return data


def encode_prefix(value: object, argument: str = "prefix") -> bytes:
    """Like `encode_name`, but empty and None mean everything."""
    if value is None or value == "":
        return b""
    return encode_name(value, argument)


def encode_label(value: object, argument: str) -> bytes:
    """A tag, an event type or a trace type as bytes: 1-128 bytes of UTF-8."""
    return encode_name(value, argument, MAX_LABEL_BYTES)


def check_tag_count(count: int) -> None:
    """Refuse more tags than one trace or run may have.

    Raises:
        LimitError: over MAX_TAGS; each tag is an index entry.
    """
    if count > MAX_TAGS:
        raise LimitError(f"{count} tags, the limit is {MAX_TAGS}", what="tags", size=count, limit=MAX_TAGS)


def encode_id(value: object, argument: str) -> bytes:
    """A trace id: the alphabet and length of a run id.

    Raises:
        InvalidKeyError: names the argument and the limit.
    """
    if not isinstance(value, str) or not _RUN.match(value):
        raise InvalidKeyError(
            f"{argument} {shorten(value)} is not 1-{MAX_RUN_CHARS} characters of [A-Za-z0-9._:-]",
            argument=argument,
        )
    return value.encode()


def shorten(value: object) -> str:
    """What a message says of a value that may be anything, however large."""
    try:
        text = repr(value)
    except Exception:  # an int of thousands of digits, or an object of the user's
        return f"of type {type_name(value)}"
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, slots=True)
class Namespace:
    """Who the data belongs to: tenant, app and agent, each 1-32 characters.

    >>> Namespace("acme", "crm", "triage").run_prefix("r1")
    b'acme/crm/triage/r1'
    """

    tenant: str = "default"
    app: str = "default"
    agent: str = "default"

    def __post_init__(self) -> None:
        for name in ("tenant", "app", "agent"):
            value = getattr(self, name)
            object.__setattr__(self, name, _check_component(value, name))

    def __str__(self) -> str:
        return f"{self.tenant}/{self.app}/{self.agent}"

    def prefix(self) -> bytes:
        """The prefix of the run records of this namespace."""
        return str(self).encode()

    def run_prefix(self, run_id: str) -> bytes:
        """The prefix of everything that one run stores."""
        return f"{self}/{check_run_id(run_id)}".encode()

    def shared_prefix(self, level: str) -> bytes:
        """The prefix of the scope that the runs of one level share."""
        parts = {
            "agent": (self.tenant, self.app, self.agent),
            "app": (self.tenant, self.app),
            "tenant": (self.tenant,),
        }.get(level if isinstance(level, str) else "")
        if parts is None:
            raise InvalidInputError(
                f"level {shorten(level)} is not one of 'agent', 'app', 'tenant'", argument="level"
            )
        return "/".join((*parts, _SHARED)).encode()


class Key(bytes):
    """A stored key. Build one with the static methods; it orders as bytes do.

    >>> Key.kv(Namespace(), "r1", "color")
    Key(default/default/default/r1 KV b'color')
    """

    __slots__ = ()

    @staticmethod
    def of(prefix: bytes, tag: int, rest: bytes = b"") -> Key:
        """The key of `rest` under a prefix and a tag."""
        return Key(b"%b\0%c%b" % (prefix, tag, rest))

    @staticmethod
    def kv(namespace: Namespace, run_id: str, key: str) -> Key:
        """The key of a KVStore entry."""
        return Key.of(namespace.run_prefix(run_id), TypeTag.KV, encode_name(key))

    @staticmethod
    def event(namespace: Namespace, run_id: str, sequence: int) -> Key:
        """The key of an event: its sequence as 8 bytes big-endian."""
        return Key.of(namespace.run_prefix(run_id), TypeTag.EVENT, encode_sequence(sequence))

    @staticmethod
    def state(namespace: Namespace, run_id: str, name: str) -> Key:
        """The key of a cell."""
        return Key.of(namespace.run_prefix(run_id), TypeTag.STATE, encode_name(name, "name"))

    @staticmethod
    def trace(namespace: Namespace, run_id: str, trace_id: str) -> Key:
        """The key of a trace."""
        return Key.of(namespace.run_prefix(run_id), TypeTag.TRACE, encode_id(trace_id, "trace_id"))

    @staticmethod
    def run(namespace: Namespace, run_id: str) -> Key:
        """The key of a run's own record."""
        return Key.of(namespace.prefix(), TypeTag.RUN, check_run_id(run_id).encode())

    def split_key(self) -> tuple[bytes, int, bytes]:
        """`(prefix, tag, rest)`; the inverse of `of`."""
        cut = self.index(0)
        return bytes(self[:cut]), self[cut + 1], bytes(self[cut + 2 :])

    def __repr__(self) -> str:
        try:
            prefix, tag, rest = self.split_key()
            name = TypeTag(tag).name
        except (ValueError, IndexError):
            return f"Key({bytes(self)!r})"
        return f"Key({prefix.decode('utf-8', 'replace')} {name} {rest!r})"


def encode_sequence(sequence: int, argument: str = "sequence") -> bytes:
    """An event sequence as 8 bytes big-endian, so that byte order is sequence order."""
    if type(sequence) is not int or not 0 <= sequence < 1 << 63:
        raise InvalidInputError(
            f"{argument} must be an int from 0 to 2**63-1, not {shorten(sequence)}",
            argument=argument,
        )
    return sequence.to_bytes(8, "big")


def bucket_of(key: bytes) -> bytes:
    """Prefix and tag: the unit in which recent writes are remembered.

    Raises:
        ValueError: the bytes are no key.
    """
    cut = key.index(0) + 2
    if len(key) < cut or len(key) > MAX_KEY_BYTES or cut == 2:
        raise ValueError("not a key")
    return key[:cut]


def owner_of(key: bytes) -> bytes:
    """The run prefix that a key belongs to, which is what a fence closes.

    A run's own record lives under its namespace, but belongs to the run.
    """
    cut = key.index(0)
    if key[cut + 1 : cut + 2] == _RUN_TAG:
        return key[:cut] + b"/" + key[cut + 2 :]
    return key[:cut]


def fence_of(owner: bytes) -> bytes:
    """The digest of a run's prefix: under it the run's fence lies, or the mark of its import."""
    return xxhash.xxh3_128_digest(owner)


def range_of(prefix: bytes, tag: int, rest: bytes = b"") -> tuple[bytes, bytes]:
    """The half-open range of all keys under a prefix and tag that start with `rest`."""
    start = b"%b\0%c%b" % (prefix, tag, rest)
    return start, successor(start)


def successor(prefix: bytes) -> bytes:
    """The first key after all keys that start with `prefix` (which is not all 0xFF)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1])
