"""What a value that cannot be stored may be turned into.

Knows types by what they are or offer, and imports no library for it.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

_BY_TYPE: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (  # the first that fits
    (enum.Enum, "{}.value"),
    ((datetime.datetime, datetime.date, datetime.time), "{}.isoformat()"),
    (datetime.timedelta, "{}.total_seconds()"),
    ((uuid.UUID, decimal.Decimal, fractions.Fraction, pathlib.PurePath), "str({})"),
    (bool, "bool({})"),
    (int, "int({})"),
    (float, "float({})"),
    (str, "str({})"),
    (complex, "[{0}.real, {0}.imag]"),
    ((bytearray, bytes), "bytes({})"),
)
_BY_METHOD: Final = (  # of a class; the first that there is
    ("model_dump", '{}.model_dump(mode="json")'),  # pydantic
    ("tolist", "{}.tolist()"),  # arrays and scalars of numpy
)


def conversion_of(value: Any, name: str = "value") -> str | None:
    """An expression that makes something that can be stored, of a value called `name`; None if unknown.

    >>> import datetime
    >>> conversion_of(datetime.date(2024, 2, 29))
    'value.isoformat()'
    """
    kind = type(value)
    if kind is memoryview:  # whose `tolist` gives numbers
        return f"bytes({name})"
    for method, text in _BY_METHOD:  # before numbers: those of numpy are some of Python's too
        if callable(getattr(kind, method, None)):
            return text.format(name)
    for known, text in _BY_TYPE:
        if isinstance(value, known):
            return text.format(name)
    if dataclasses.is_dataclass(kind):
        return f"dataclasses.asdict({name})"
    if isinstance(value, Mapping):
        return f"dict({name})"
    if isinstance(value, set | frozenset):
        return f"sorted({name})"
    if callable(getattr(value, "_asdict", None)):
        return f"{name}._asdict()"  # a named tuple
    return f"list({name})" if isinstance(value, Iterable) else None
