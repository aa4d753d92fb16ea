"""A refused value comes with what may be stored instead."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
import traceback
import uuid
from typing import Any

import pytest

from inmem.conversions import conversion_of
from inmem.errors import InvalidInputError, InvalidValueError, LimitError
from inmem.values import decode, encode


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 2


@dataclasses.dataclass
class Point:
    x: int = 1


class Model:
    """As pydantic has them."""

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"mode": mode}


class Number(float):
    """As numpy has them."""

    def tolist(self) -> float:
        return float(self)


Pair = collections.namedtuple("Pair", "a b")

VALUES: list[Any] = [
    datetime.datetime(2024, 2, 29, 12), datetime.date(2024, 2, 29), datetime.time(12), datetime.timedelta(1),
    uuid.UUID(int=1), decimal.Decimal("1.5"), Colour.RED, Level.HIGH, pathlib.Path("/tmp"), Point(), Model(),
    Number(1.5), (1, 2), {1, 2}, frozenset([1]), collections.OrderedDict(a=1), collections.deque([1]),
    bytearray(b"a"), memoryview(b"a"), 1 + 2j, Pair(1, 2), range(3),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_what_it_names_can_be_stored(value: Any) -> None:
    with pytest.raises(InvalidValueError) as raised:
        encode({"at": [value]}, "payload")
    problem, _, expression = str(raised.value).partition(": store ")
    assert problem == f"payload['at'][0] is a {type(value).__name__}, which would not come back as one"
    stored = eval(expression, {"payload": {"at": [value]}, "dataclasses": dataclasses})
    assert decode(encode(stored)) == stored


def test_a_long_place_is_not_repeated() -> None:
    with pytest.raises(InvalidValueError, match=r": store it\.isoformat\(\)\n"):
        encode({"k" * 100: datetime.date(2024, 2, 29)})


def test_what_nobody_can_convert() -> None:
    assert conversion_of(object()) is None
    with pytest.raises(InvalidValueError, match=r"as one\n"):
        encode(object())


def test_a_traceback_shows_the_hint() -> None:
    """As a note (PEP 678), below the message."""
    error = InvalidInputError("x is wrong", argument="x")
    assert traceback.format_exception_only(error)[1:] == ["Correct the argument that the message names.\n"]
    mine = LimitError("too big", hint="Cut it.")
    assert "".join(traceback.format_exception_only(mine)) == "inmem.errors.LimitError: too big\nCut it.\n"
