"""Places of adapters: a run for each foreign name, with values of any length under names of any kind.

Invariant: a name has one run at a time, which is named in the transaction that changes something there. So
it can be destroyed at once and used again, and who still writes to the old run is refused.

The run of a name is told by an entry among those that all runs of the agent share. In the run:

    e/=<name>               {"key": the name, "value"}
    e/#<hash>               the same, if the name is too long or has a NUL
    l/<token>               where the entry is whose value has these parts
    p/<token>/<number>      parts of long values, see `inmem.adapters.foreign`

A value is a text or bytes, or if it is long what names its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, NamedTuple

import inmem
from inmem.adapters.foreign import Packed, clear_parts, foreign, hashed, sweep_parts, token_of, unpacked

PLAIN: Final = "e/="
HASHED: Final = "e/#"
_OWNERS: Final = "l/"
_PLAIN_BYTES: Final = 256  # of a name that is stored as it is; a key of a store has at most 320
_TEXT: Final = "str"
_BYTES: Final = "bytes"
_FOREVER_S: Final = 90 * 366 * 86_400.0  # what expires later does not expire: the store allows a century
_LEAST_S: Final = 0.001  # for which an entry is stored that expires at once
_PARTS_LIVE_S: Final = 3600.0  # longer than what names them: they are stored before

Piece = Callable[[Any], Any]  # a function of one transaction of what all runs share


class PlaceName(NamedTuple):
    """What a place is called: the key that tells its run, the run's tag, and its metadata."""

    key: str
    tag: str
    metadata: dict[str, str]


class NamedPlace(NamedTuple):
    """A place as a transaction sees it."""

    run_id: str
    kv: Any
    has_parts: bool

    @classmethod
    def found(cls, txn: Any, name: PlaceName) -> NamedPlace | None:
        """A place, if something was put there."""
        named = named_in(txn.kv.get(name.key))
        return None if named is None else cls.of(txn, named)

    @classmethod
    def begun(cls, txn: Any, name: PlaceName, *, has_parts: bool = False) -> NamedPlace:
        """A place, made if need be. That it has parts is never taken back."""
        named = named_in(txn.kv.get(name.key))
        if named is None:
            named = {**name.metadata, "run_id": str(inmem.RunId.new()), "has_parts": has_parts}
            txn.kv.put(name.key, named)
            txn.at(named["run_id"]).runs.create_run(tags=[name.tag], metadata=name.metadata)
        elif has_parts and not named["has_parts"]:
            named = {**named, "has_parts": True}
            txn.kv.put(name.key, named)
        return cls.of(txn, named)

    @classmethod
    def of(cls, txn: Any, named: Mapping[str, Any]) -> NamedPlace:
        """The place that an entry names."""
        return cls(named["run_id"], txn.at(named["run_id"]).kv, named["has_parts"])

    def values(self, keys: Iterable[str]) -> dict[str, str | bytes]:
        """The values of entries, by where they are."""
        return {key: value_of(entry, self.kv.get) for key, entry in self.kv.get_many(keys).items()}

    def remove(self, keys: Iterable[str]) -> int:
        """Remove entries with their parts; how many there were."""
        found = self.kv.get_many(keys)
        for key in found:
            self.kv.discard(key)
        self._drop_parts(found)
        return len(found)

    def names(self, limit: int | None = None) -> list[str]:
        """The names: first the hashed ones, in the order of their hashes, then the others in order."""
        found = [_name_in(entry) for _, entry in self.kv.list_with_values(HASHED, limit=limit)]
        left = None if limit is None else limit - len(found)
        return found + [key[len(PLAIN) :] for key in self.kv.list(PLAIN, limit=left)]

    def sweep(self) -> None:
        """Remove the parts that no value has: of programs that died in the middle."""
        if self.has_parts:
            owners: list[tuple[str, str]] = self.kv.list_with_values(_OWNERS)
            entries = self.kv.get_many([key for _, key in owners if type(key) is str and key])
            found = (token_of(value_in(entry)) for entry in entries.values())
            named = frozenset(token for token in found if token is not None)
            sweep_parts(self.kv, named)
            for key, _ in owners:
                if key[len(_OWNERS) :] not in named:
                    self.kv.discard(key)

    def _drop_parts(self, entries: Mapping[str, Any]) -> None:
        for entry in entries.values():
            value = entry.get("value") if isinstance(entry, dict) else None
            token = token_of(value)
            if token is not None:
                clear_parts(self.kv, value)
                self.kv.discard(_OWNERS + token)

    def replace(self, entries: PlaceEntries) -> None:
        """Put entries, and remove the parts of those that were there."""
        if self.has_parts:
            self._drop_parts(self.kv.get_many(entries.stored))
        self.kv.put_many(entries.stored, ttl=entries.ttl)
        if entries.owners:
            self.kv.put_many(entries.owners, ttl=entries.later)


class PlaceEntries:
    """Values under names, to be put in one commit; after `ttl` seconds they are gone."""

    def __init__(self, values: Mapping[str, str | bytes], ttl: float | None = None) -> None:
        self._packed = Packed()
        self.stored: dict[str, Any] = {}
        self.owners: dict[str, str] = {}
        for name, value in values.items():
            is_text = isinstance(value, str)
            data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
            packed = self._packed.add(_TEXT if is_text else _BYTES, data)
            token, key = token_of(packed), entry_key(name)
            self.stored[key] = {"key": name, "value": value if token is None else packed}
            if token is not None:
                self.owners[_OWNERS + token] = key
        self.ttl = None if ttl is None or ttl > _FOREVER_S else max(ttl, _LEAST_S)
        self.later = None if self.ttl is None else self.ttl + _PARTS_LIVE_S

    @property
    def is_long(self) -> bool:
        """Whether parts must be stored before."""
        return bool(self._packed.parts)

    def pieces(self, name: PlaceName) -> Generator[Piece, Any, None]:
        """What puts them, one transaction after the other; wants what each of them returned.

        Parts are stored first. If somebody sweeps them before they are named, they are stored again.
        """

        def put(txn: Any) -> bool:
            place = NamedPlace.begun(txn, name, has_parts=self.is_long)
            if not self._packed.are_there(place.kv):
                return False
            place.replace(self)
            return True

        is_put = False
        while not is_put:
            for key, data in self._packed.parts:

                def put_part(txn: Any, key: str = key, data: bytes = data) -> None:
                    NamedPlace.begun(txn, name, has_parts=True).kv.put(key, data, ttl=self.later)

                yield put_part
            is_put = yield put


def named_in(stored: Any) -> dict[str, Any] | None:
    """What is stored under a place's key, if something is.

    Raises:
        CorruptionError: no adapter has stored it.
    """
    match stored:
        case None | {"run_id": str(), "has_parts": bool()}:
            return stored
    raise foreign("the run of a place", stored)


def value_in(entry: Any) -> Any:
    """The value in an entry: a text, bytes, or a list that names its parts.

    Raises:
        CorruptionError: no adapter has stored it.
    """
    match entry:
        case {"value": str() | bytes() | list() as value}:
            return value
    raise foreign("an entry", entry)


def _name_in(entry: Any) -> str:
    match entry:
        case {"key": str() as name}:
            return name
    raise foreign("an entry", entry)


def value_of(entry: Any, read: Callable[[str], Any]) -> str | bytes:
    """The value of an entry; `read` gives the part under a key.

    Raises:
        CorruptionError: no adapter has stored it, or a part is missing.
    """
    value = value_in(entry)
    if not isinstance(value, list):
        short: str | bytes = value
        return short
    kind, data = unpacked(value, read)
    return data.decode("utf-8", "surrogatepass") if kind == _TEXT else data


def entry_key(name: str, argument: str = "key") -> str:
    """Where an entry is.

    Raises:
        InvalidInputError: the name has a lone surrogate.
    """
    if len(utf8_of(name, argument)) <= _PLAIN_BYTES and "\0" not in name:
        return PLAIN + name
    return HASHED + hashed(name)


def utf8_of(name: str, argument: str) -> bytes:
    """A name as bytes.

    Raises:
        InvalidInputError: it has a lone surrogate.
    """
    try:
        return name.encode()
    except UnicodeEncodeError as error:
        raise inmem.InvalidInputError(
            f"{argument} has a lone surrogate at character {error.start}, which UTF-8 cannot hold",
            argument=argument,
        ) from None


def unnamed(name: PlaceName, run_id: str | None) -> Callable[[Any], None]:
    """The place has not got this run any more, which was deleted: the next one to put something makes one."""

    def unname(txn: Any) -> None:
        named = named_in(txn.kv.get(name.key))
        if named is not None and named["run_id"] == run_id:
            txn.kv.discard(name.key)

    return unname
