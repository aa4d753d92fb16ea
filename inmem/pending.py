"""Results that only the commit knows, and what becomes of them in what a function returns."""

from __future__ import annotations

import operator
from typing import Any, Generic, TypeVar

from inmem.errors import InvariantError

T = TypeVar("T")
N = TypeVar("N", bound=float)


class Pending(Generic[T]):
    """A result that only the commit knows: `value` is there after it, or once a transaction knows it.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     with db.pipeline() as p:
    ...         existed = p.kv.delete("run-1", "missing")
    ...     existed.value
    False
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[Any, ...] | None = None

    def resolve(self, result: T) -> None:
        """Called with the result once it is known."""
        self._known = (result,)

    def resolve_part(self, result: Any, position: int) -> None:
        """Called with the result of a joined call, of which this is the item at a position."""
        self.resolve(result[position])

    def forget(self) -> None:
        """Called if the commit that the result is of does not happen."""
        self._known = None

    @property
    def is_known(self) -> bool:
        """Whether the result is there."""
        return self._known is not None

    def result(self) -> T:
        """The result.

        Raises:
            InvariantError: the transaction has not committed.
        """
        if self._known is None:
            raise InvariantError(
                "this is known only after the commit", hint="Read it when the transaction is over."
            )
        return self._made(self._known)

    def _made(self, known: tuple[Any, ...]) -> T:
        """The result, made of what `_known` holds."""
        result: T = known[0]
        return result

    @property
    def value(self) -> T:
        """The result, see `result`."""
        return self.result()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._made(self._known) if self._known else None!r})"


class PendingReal(Pending[N]):
    """A number that only the commit knows. Once it is known, this computes and compares as the number does.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     with db.transaction("run-1") as txn:
    ...         count = txn.kv.add("steps")
    ...     count + 1, count == 1, f"{count:03}"
    (2, True, '001')

    Raises:
        InvariantError: it is used as a number before that.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return bool(self.result())

    def __int__(self) -> int:
        return int(self.result())

    def __float__(self) -> float:
        return float(self.result())

    def __index__(self) -> int:
        number: Any = self.result()
        return operator.index(number)

    def __hash__(self) -> int:
        return hash(self.result())

    def __str__(self) -> str:
        return repr(self) if self._known is None else str(self.result())

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if self._known is None else format(self.result(), spec)

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self.result() == _number(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.result() < _number(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.result() <= _number(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.result() > _number(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.result() >= _number(other))

    def __neg__(self) -> Any:
        return -self.result()

    def __pos__(self) -> Any:
        return self.result()

    def __abs__(self) -> Any:
        return abs(self.result())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.result(), digits)

    def __add__(self, other: Any) -> Any:
        return self.result() + _number(other)

    def __radd__(self, other: Any) -> Any:
        return other + self.result()

    def __sub__(self, other: Any) -> Any:
        return self.result() - _number(other)

    def __rsub__(self, other: Any) -> Any:
        return other - self.result()

    def __mul__(self, other: Any) -> Any:
        return self.result() * _number(other)

    def __rmul__(self, other: Any) -> Any:
        return other * self.result()

    def __truediv__(self, other: Any) -> Any:
        return self.result() / _number(other)

    def __rtruediv__(self, other: Any) -> Any:
        return other / self.result()

    def __floordiv__(self, other: Any) -> Any:
        return self.result() // _number(other)

    def __rfloordiv__(self, other: Any) -> Any:
        return other // self.result()

    def __mod__(self, other: Any) -> Any:
        return self.result() % _number(other)

    def __rmod__(self, other: Any) -> Any:
        return other % self.result()

    def __divmod__(self, other: Any) -> Any:
        return divmod(self.result(), _number(other))

    def __rdivmod__(self, other: Any) -> Any:
        return divmod(other, self.result())

    def __pow__(self, other: Any) -> Any:
        return self.result() ** _number(other)

    def __rpow__(self, other: Any) -> Any:
        return other ** self.result()


def _number(other: Any) -> Any:
    return other.result() if isinstance(other, PendingReal) else other


def filled(returned: Any) -> Any:
    """What a function returned, with each result in it that is known by now in place of what waited for it.

    Lists and dicts are filled in where they are; a tuple that has any is made anew.
    """
    top = [returned]
    met: set[int] = set()
    to_do: list[Any] = [top]
    while to_do:
        one = to_do.pop()
        if id(one) not in met:
            met.add(id(one))
            for place, item in dict.items(one) if isinstance(one, dict) else enumerate(one):
                value = _value_of(item, to_do)
                if value is not item:
                    one[place] = value  # under a name that is there: a dict keeps its size
    return top[0]


def _value_of(item: Any, to_do: list[Any]) -> Any:
    """The item, or what it stands for; what else is to be looked into is added."""
    if isinstance(item, Pending):
        return item.result() if item.is_known else item
    if isinstance(item, tuple):
        parts = [_value_of(part, to_do) for part in item]
        if any(part is not before for part, before in zip(parts, item, strict=True)):
            return type(item)._make(parts) if hasattr(item, "_make") else tuple(parts)
    elif getattr(type(item), "__setitem__", None) in (list.__setitem__, dict.__setitem__):
        to_do.append(item)
    return item
