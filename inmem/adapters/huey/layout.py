"""What is stored for a Huey, and under which names.

Each name of a Huey has a run of its own, made of `huey/` and the name, with
the tag `huey`. In it are:

    queue `tasks`   jobs: `{"data": message}`, and "task" and "id" where a Huey has put it
    d/KEY           results, locks, revocations: bytes
    d#HASH          the same under a key that a key of the store cannot be: `{"key", "data"}`
    c/KEY, c#HASH   counters
    s/TIME/ID       the schedule: TIME in microseconds since year 1, 18 digits; as a job
    m/JOB/HASH      which counter a job that is redelivered has counted already, and to what
    p/TOKEN/NUMBER  parts of values over 8 MiB; where these are it says `["", TOKEN, count]`

A message is what Huey's serializer made of a task, for others opaque bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import inmem
from inmem.adapters.foreign import WHOLE_BYTES, Packed, clear_parts, foreign, hashed, unpacked

QUEUE: Final = "tasks"
DATA: Final = "d"
COUNTERS: Final = "c"
SCHEDULE: Final = "s/"
QUEUE_PARTS: Final = "q."  # what tokens of parts start with
SCHEDULE_PARTS: Final = "s."
DATA_PARTS: Final = "d."
_MICROSECOND: Final = datetime.resolution
_WHOLE_KEY_BYTES: Final = 300  # a key of the store has 320 at most


class Message(bytes):
    """A message of a task, and how the task is called: so that who looks into the store can read it."""

    task: str = ""
    id: str = ""

    @classmethod
    def of(cls, data: bytes, task: str, task_id: str) -> Message:
        """A message with its name and id."""
        made = cls(data)
        made.task, made.id = task, task_id
        return made


def run_of(name: str) -> inmem.RunId:
    """The run of a Huey.

    Raises:
        InvalidInputError: it is no name.
    """
    if not isinstance(name, str) or not name:
        problem = f"name must be a str with something in it, not {name!r}"
        raise inmem.InvalidInputError(problem, argument="name")
    return inmem.RunId.from_external(f"huey/{name}")


def text_of(key: str | bytes) -> str:
    """A key as text: bytes are the key that they spell in UTF-8.

    Raises:
        InvalidInputError: it is no str and no bytes.
    """
    if isinstance(key, bytes):
        return key.decode("utf-8", "surrogateescape")
    if not isinstance(key, str):
        problem = f"key must be a str or bytes, not {type(key).__name__}"
        raise inmem.InvalidInputError(problem, argument="key")
    return key


def place_of(kind: str, key: str) -> str:
    """Where something with this key is stored."""
    try:
        is_whole = 0 < len(key.encode()) <= _WHOLE_KEY_BYTES and "\0" not in key
    except UnicodeEncodeError:
        is_whole = False
    return f"{kind}/{key}" if is_whole else f"{kind}#{hashed(key)}"


def stored_data(key: str, entry: Any) -> Any:
    """What is stored under `place_of(DATA, key)`."""
    is_whole = place_of(DATA, key).startswith(f"{DATA}/")
    return entry if is_whole else {"key": key.encode("utf-8", "surrogatepass"), "data": entry}


def data_in(stored: Any) -> Any:
    """The entry in what is stored under a key, in the schedule or in a job; None if there is none."""
    return stored.get("data") if isinstance(stored, dict) else stored


def key_at(place: str, stored: Any) -> str:
    """The key of what is stored at a place."""
    match stored:
        case {"key": bytes() as key}:
            return key.decode("utf-8", "surrogatepass")
        case dict():
            raise foreign("an entry", stored)
    return place.removeprefix(f"{DATA}/")


def due_place(at: datetime) -> str:
    """Where a scheduled message is, but for its id: places come in the order of times.

    A time without a zone is taken as it is, and compared with others of its kind; one with a zone as
    local time.

    Raises:
        InvalidInputError: it is no time.
    """
    if not isinstance(at, datetime):
        raise inmem.InvalidInputError(f"ts must be a datetime, not {type(at).__name__}", argument="ts")
    plain = at if at.tzinfo is None else at.astimezone().replace(tzinfo=None)
    return f"{SCHEDULE}{(plain - datetime.min) // _MICROSECOND:018}"


def priority_of(priority: object) -> int:
    """A priority of Huey's as one of a queue: None is 0, and whole numbers are what they are.

    Raises:
        InvalidInputError: it has a fraction, or is none.
    """
    if priority is None:
        return 0
    if isinstance(priority, int | float) and priority == priority // 1:
        return int(priority)  # the queue refuses what is out of its range
    problem = f"priority must be a whole number or None, not {priority!r}"
    raise inmem.InvalidInputError(problem, argument="priority", hint="Multiply all priorities by 10 or 100.")


def packed(area: str, data: object, argument: str) -> tuple[Any, list[tuple[str, bytes]]]:
    """Bytes as they are stored, and the parts to be stored before.

    Raises:
        InvalidInputError: they are no bytes.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        problem = f"{argument} must be bytes, not {type(data).__name__}"
        raise inmem.InvalidInputError(problem, argument=argument, hint="Huey's serializer makes them.")
    plain = bytes(data)
    if len(plain) <= WHOLE_BYTES:
        return plain, []
    all_parts = Packed(area)
    return all_parts.add("", plain), all_parts.parts


def loaded(entry: Any, read: Callable[[str], Any]) -> bytes:
    """The bytes of a stored entry; `read` gives the part under a key.

    Raises:
        CorruptionError: it is no entry of this adapter.
    """
    return entry if isinstance(entry, bytes) else unpacked(entry, read)[1]


def payload_of(area: str, data: bytes) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """A message as it is queued or scheduled, and the parts to be stored before."""
    entry, parts = packed(area, data, "data")
    shown = {"task": data.task, "id": data.id} if isinstance(data, Message) else {}
    return shown | {"data": entry}, parts


def take_due(txn: Any, place: str) -> bool:
    """Remove what is at a place of the schedule; whether it was there still."""
    stored = txn.kv.get(place)
    if stored is None:
        return False
    txn.kv.discard(place)
    clear_parts(txn.kv, data_in(stored))
    return True
