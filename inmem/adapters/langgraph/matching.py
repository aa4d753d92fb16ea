"""What a search asks for: filters of values, patterns of namespaces. Nothing here reads or writes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from langgraph.store.base import MatchCondition

import inmem
from inmem.adapters.langgraph.items import Namespace

_ABSENT: Final = object()
_ANY: Final = "*"


def check_filter(wanted: Any) -> None:
    """A filter has names of fields, and operators that there are.

    Raises:
        InvalidInputError: it has not.
    """
    if not isinstance(wanted, Mapping):
        raise _wrong(f"a filter must be a dict, not {type(wanted).__name__}")
    for name, value in wanted.items():
        if not isinstance(name, str):
            raise _wrong(f"a filter's fields must be str, not {name!r}")
        if isinstance(value, Mapping):
            if _has_operators(value):
                for unknown in value.keys() - _OPERATORS.keys():
                    raise _wrong(f"unknown operator {unknown!r}; there are {', '.join(_OPERATORS)}")
            else:
                check_filter(value)


def matches(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a value has all fields as a filter wants them. `a.b` is the field `b` of `a`."""
    return all(_is_wanted(_field(value, name), each) for name, each in wanted.items())


def namespace_matches(namespace: Namespace, condition: MatchCondition) -> bool:
    """Whether a namespace begins or ends so; `*` is any label."""
    path = condition.path
    if len(path) > len(namespace):
        return False
    begin = 0 if condition.match_type == "prefix" else len(namespace) - len(path)
    return all(wanted in (_ANY, label) for label, wanted in zip(namespace[begin:], path, strict=False))


def check_condition(condition: MatchCondition) -> None:
    """A condition is of a kind that there is.

    Raises:
        InvalidInputError: it is not.
    """
    if condition.match_type not in ("prefix", "suffix"):
        problem = f"match_type must be 'prefix' or 'suffix', not {condition.match_type!r}"
        raise inmem.InvalidInputError(problem, argument="match_conditions")


def literal_prefix(conditions: tuple[MatchCondition, ...]) -> Namespace:
    """The longest namespace that all that match are below."""
    found: Namespace = ()
    for condition in conditions:
        if condition.match_type == "prefix":
            path = tuple(condition.path)
            literal = path[: path.index(_ANY)] if _ANY in path else path
            found = max(found, literal, key=len)
    return found


def _field(value: Mapping[str, Any], name: str) -> Any:
    if name in value:
        return value[name]
    found: Any = value
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _ABSENT
        found = found[part]
    return found


def _is_wanted(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if _has_operators(wanted):
            return all(_OPERATORS[name](found, each) for name, each in wanted.items())
        return isinstance(found, Mapping) and matches(found, wanted)
    return _is_equal(found, wanted)


def _has_operators(wanted: Mapping[str, Any]) -> bool:
    return any(isinstance(name, str) and name.startswith("$") for name in wanted)


def _is_equal(found: Any, wanted: Any) -> bool:
    """As JSON has it: true is not 1, a list is a tuple, what is not there is null."""
    if found is _ABSENT:
        return wanted is None
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(wanted, list | tuple):
        return isinstance(found, list | tuple) and len(found) == len(wanted) and all(
            map(_is_equal, found, wanted)
        )
    return bool(found == wanted)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Compare numbers with numbers, and text with text; all else does not match."""

    def is_so(found: Any, wanted: Any) -> bool:
        for kind in (int | float, str):
            if isinstance(found, kind) and isinstance(wanted, kind):
                return not isinstance(found, bool) and not isinstance(wanted, bool) and compare(found, wanted)
        return False

    return is_so


def _wrong(problem: str) -> inmem.InvalidInputError:
    return inmem.InvalidInputError(problem, argument="filter")


_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$eq": _is_equal, "$ne": lambda found, wanted: not _is_equal(found, wanted),
    "$gt": _ordered(operator.gt), "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt), "$lte": _ordered(operator.le),
}
