"""Settings and limits: every number that bounds the store, each with its reason.

Invariant: a setting has one definition, here, with its type, default, range
and reason; and one order of precedence: arguments, then `INMEM_*` variables,
then the TOML file, then the default. Settings of the section `store` decide
safety or shape of a database: they are written into the data directory when
it is created, and every later writer uses those.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from inmem.errors import ConfigMismatchError, InvalidInputError

PROTOCOL_VERSION: Final = 3  # of the messages between client and writer
FORMAT_VERSION: Final = 1  # of the data directory: settings, log and checkpoint
CONTROL_VERSION: Final = 2  # of the control file, and of the names and contents of what is in memory

DURABILITIES: Final = ("memory", "buffered", "sync")
CHAINS: Final = ("xxh3", "sha256")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

MIB: Final = 1024 * 1024

# Limits that are not settings: changing one changes what other programs may rely on.
MAX_TTL_S: Final = 100 * 366 * 86_400  # a century: beyond it a ttl is a mistake in units
MAX_TIMEOUT_S: Final = 1e9  # thirty years: what has no deadline, in a number that clocks can hold
MAX_MESSAGE_BYTES: Final = 64 * MIB  # one request or answer; checked before decoding
# What a commit comes to, index entries included: keys and records, and ENTRY_BYTES for each of them. While
# one is decided all others wait: 3 to 4 us for each entry, 5 to 10 ms for each MiB: some 100 ms at most, but
# for the largest values (up to 170 beside other work).
MAX_COMMIT_BYTES: Final = 17 * MIB  # the largest value and what goes with it
ENTRY_BYTES: Final = 1536  # what a MiB and an entry cost, in bytes of the one
MAX_TRANSACTION_BYTES: Final = 24 * MIB  # of a commit's encoded body: all of that, and what it has read
MAX_TRANSACTION_OPS: Final = 10_000  # writes and procedure calls in one commit: of small ones, no more fit
MAX_READ_SET: Final = 200_000  # keys and ranges validated for one commit
REPAIR_LIMIT: Final = 4000  # index entries that one commit repairs: see MAX_COMMIT_BYTES
CLEAR_LIMIT: Final = 4000  # KV entries that one commit clears: see MAX_COMMIT_BYTES
MAX_TAGS: Final = 256  # of one trace or run: each is an index entry
MAX_RANGE_WALK: Final = 20_000  # records the writer walks to validate one range; then it is a conflict
COUNT_LIMIT: Final = 10_000  # records of a run that the writer counts to delete it; more the client counts
MAX_BATCH: Final = 512  # requests in one group commit: bounds latency under a flood
MAX_BATCH_BYTES: Final = MIB  # a group of commits takes no more messages then: others wait for all of it
MAX_MAILBOX_BYTES: Final = 4 * MAX_MESSAGE_BYTES  # waiting messages: beyond it senders are shut out
MAX_IN_FLIGHT_BYTES: Final = MAX_MESSAGE_BYTES  # unanswered commits of one session: bounds both sides
MAX_IN_FLIGHT: Final = 1024  # unanswered commits of one session: bounds its outcomes in the image
MAX_SESSIONS: Final = 65_536  # registered sessions; the longest idle leave first
MIN_SESSION_IDLE_S: Final = 600  # a session idle for less is never dropped to make room
MAX_RECENT_BUCKETS: Final = 65_536  # runs x types whose last write is remembered
MAX_WRITER_DEATHS: Final = 3  # silent ones, while deciding one commit: two may be kills from outside
MAX_CONTROL_PATH: Final = 255  # bytes of a path in the control file
MAX_SOCKET_PATH: Final = 107  # sun_path of Linux, less its NUL
MAP_BYTES: Final = 1 << 38  # address space of the image: large, so that it is never remapped
SWEEP_LIMIT: Final = 1_000  # expired records, or those of a deleted run, removed in one go: 3 to 8 ms

assert MAX_COMMIT_BYTES < MAX_TRANSACTION_BYTES, "what a commit writes is in its body"
assert MAX_TRANSACTION_BYTES < MAX_MESSAGE_BYTES, "a legal commit must fit a message"


def _setting(
    default: Any,
    section: str,
    reason: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Any:
    metadata = {
        "section": section, "reason": reason, "choices": choices, "low": low, "high": high
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings with their defaults. Units are in the names."""

    durability: str = _setting(
        "buffered", "store", "what an acknowledged commit survives", choices=DURABILITIES
    )
    chain: str = _setting(
        "xxh3", "store", "hash of new event logs; sha256 is tamper-evident", choices=CHAINS
    )
    quota_bytes: int = _setting(
        1024 * MIB, "store", "live bytes of the image; beyond it writes get StoreFullError",
        low=4 * MIB, high=MAP_BYTES // 4,
    )
    segment_bytes: int = _setting(
        16 * MIB, "store", "a WAL segment is closed at this size", low=64 * 1024, high=1 << 32
    )
    fsync_interval_ms: int = _setting(
        100, "store", "the most a power cut may lose in buffered mode", low=1, high=60_000
    )
    checkpoint_wal_bytes: int = _setting(
        64 * MIB, "store", "a log larger than this, and than the image, is replaced by a checkpoint",
        low=64 * 1024, high=1 << 40,
    )
    checkpoint_interval_s: float = _setting(
        300.0, "store", "after this long a sixteenth of such a log is enough", low=0.1, high=1e9
    )
    linger_s: float = _setting(
        2.0, "store", "the writer leaves this long after its last client", low=0.0, high=1e9
    )
    max_readers: int = _setting(
        1024, "store", "reader slots of the image: one per open snapshot", low=8, high=32_768
    )
    session_ttl_s: float = _setting(
        86_400.0, "store", "an idle session can resolve its last commits for this long",
        low=MIN_SESSION_IDLE_S, high=1e9,
    )
    image_dir: str = _setting(
        "", "store", "where the image lives; empty: /dev/shm, or the data directory if it is small"
    )
    batch_limit: int = _setting(
        MAX_BATCH, "store", "requests in one group commit", low=1, high=MAX_BATCH
    )
    max_in_flight: int = _setting(
        MAX_IN_FLIGHT, "store", "unanswered commits of one session", low=1, high=MAX_IN_FLIGHT
    )
    log_level: str = _setting(
        "info", "store", "what the writer writes to writer.log, and nothing below it", choices=LOG_LEVELS
    )
    slow_commit_ms: int = _setting(
        1000, "store", "a group of commits that takes longer is told in writer.log", low=1, high=3_600_000
    )

    timeout_s: float = _setting(
        10.0, "client", "bounds opening, and is the default deadline of a commit",
        low=0.001, high=MAX_TIMEOUT_S,
    )
    snapshot_max_age_s: float = _setting(
        30.0, "client", "an older snapshot pins memory: it is closed", low=0.01, high=3600.0
    )
    pipeline_window: int = _setting(
        32, "client", "commits a pipeline sends ahead of their answers", low=1, high=MAX_IN_FLIGHT
    )
    pipeline_group: int = _setting(
        100, "client", "writes to one run that a pipeline puts into one commit", low=1, high=10_000
    )


_FIELDS: Final = {f.name: f for f in fields(Settings)}
_SECTIONS: Final = frozenset(f.metadata["section"] for f in _FIELDS.values())
STORED: Final = tuple(n for n, f in _FIELDS.items() if f.metadata["section"] == "store")
# Stored settings that came later: a directory, or a backup, that lacks them has their defaults.
_LATER: Final = frozenset({"log_level", "slow_commit_ms"})


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and for each where it came from: `default`, a file, a variable or `argument`."""

    settings: Settings
    origins: Mapping[str, str]

    def with_stored(self, stored: Mapping[str, Any]) -> Configuration:
        """This configuration for a directory that has stored settings.

        Raises:
            ConfigMismatchError: a setting was asked for that differs from the
                stored one.
        """
        for name, value in stored.items():
            asked = getattr(self.settings, name)
            if self.origins[name] != "default" and asked != value:
                raise ConfigMismatchError(
                    f"{name}={asked!r} ({self.origins[name]}) was asked for, "
                    f"but this database was created with {value!r}",
                    setting=name,
                    stored=value,
                    requested=asked,
                )
        merged = {name: getattr(self.settings, name) for name in _FIELDS} | dict(stored)
        origins = dict(self.origins) | dict.fromkeys(stored, "stored")
        return Configuration(Settings(**merged), origins)


def load(
    path: str | os.PathLike[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """The configuration from arguments, environment, file and defaults, in that order.

    Raises:
        InvalidInputError: an unknown name, a wrong type or a value out of
            range; the message names the source and the limit.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins = dict.fromkeys(_FIELDS, "default")
    for name, value in _from_toml(path).items():
        values[name], origins[name] = _checked(name, value, str(path)), f"file {path}"
    for name in _FIELDS:
        variable = f"INMEM_{name.upper()}"
        if variable in environ:
            values[name] = _checked(name, _parse(name, environ[variable], variable), variable)
            origins[name] = f"variable {variable}"
    for name, value in (arguments or {}).items():
        if name not in _FIELDS:
            raise InvalidInputError(f"there is no setting {name}", argument=name)
        if value is not None:
            values[name], origins[name] = _checked(name, value, name), "argument"
    return Configuration(Settings(**values), origins)


def check_stored(values: Any, source: str) -> dict[str, Any]:
    """Stored settings read back from a data directory, checked name by name."""
    if not isinstance(values, dict) or set(values) | _LATER != set(STORED):
        raise InvalidInputError(f"{source} does not hold exactly the stored settings")
    whole = {name: _FIELDS[name].default for name in _LATER} | values
    return {name: _checked(name, whole[name], source) for name in STORED}


def _from_toml(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    if path is None:
        return {}
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(
            f"config must be a str or a path, not {type(path).__name__}", argument="config"
        )
    import tomllib  # here, as the writer never needs it: each module is memory of every writer

    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:  # unreadable, not UTF-8, not TOML, not a path
        raise InvalidInputError(f"config {path}: {error}", argument="config") from None
    values: dict[str, Any] = {}
    for section, table in tables.items():
        if section not in _SECTIONS:
            raise InvalidInputError(f"config {path}: no section {section}", argument="config")
        for name, value in table.items() if isinstance(table, dict) else [(section, None)]:
            if name not in _FIELDS or _FIELDS[name].metadata["section"] != section:
                raise InvalidInputError(
                    f"config {path}: no setting {section}.{name}", argument="config"
                )
            values[name] = value
    return values


def _parse(name: str, text: str, source: str) -> Any:
    kind: Any = type(_FIELDS[name].default)
    try:
        return kind(text)
    except ValueError:
        raise InvalidInputError(
            f"{source}={text!r} is not of type {kind.__name__}", argument=source
        ) from None


def _checked(name: str, value: Any, source: str) -> Any:
    kind = type(_FIELDS[name].default)
    meta = _FIELDS[name].metadata
    if kind is float and isinstance(value, timedelta):
        value = value.total_seconds()
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 63 else float("inf")
    elif kind is int and type(value) is int and abs(value) >= 1 << 63:
        value = (1 << 63) if value > 0 else -(1 << 63)  # out of every range, and short to print
    if type(value) is not kind:
        raise InvalidInputError(
            f"{name} must be of type {kind.__name__}, not {type(value).__name__} ({source})",
            argument=name,
        )
    if meta["choices"] and value not in meta["choices"]:
        raise InvalidInputError(
            f"{name} must be one of {', '.join(meta['choices'])}, not {value!r} ({source})",
            argument=name,
        )
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        raise InvalidInputError(
            f"{name}={value!r} is outside {meta['low']} to {meta['high']} ({source})", argument=name
        )
    return value
