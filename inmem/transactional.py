"""Functions that take a scope or a transaction: see `transactional`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, overload

from inmem.callables import check_callable, check_result
from inmem.errors import InvalidInputError
from inmem.scopes import RunScope, Transaction

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S")
_Target: TypeAlias = RunScope | Transaction


@overload
def transactional(  # type: ignore[overload-overlap]  # a transaction is never `self`
    fn: Callable[Concatenate[Transaction, P], T],
) -> Callable[Concatenate[_Target, P], T]: ...
@overload
def transactional(
    fn: Callable[Concatenate[S, Transaction, P], T],
) -> Callable[Concatenate[S, _Target, P], T]: ...
def transactional(fn: Any) -> Any:
    """Make `f(scope_or_txn, ...)`: retries when given a scope, composes when given a transaction.

    A method has it after `self` or `cls`.

    >>> import inmem
    >>> @inmem.transactional
    ... def count(txn, key):
    ...     txn.kv.put(key, txn.kv.get(key, 0) + 1)
    >>> with inmem.open() as db:
    ...     count(db.run("run-1"), "steps")
    ...     with db.transaction("run-1") as txn:
    ...         count(txn, "steps")
    ...     db.kv.get("run-1", "steps")
    2

    Raises:
        InvalidInputError: not callable, or a coroutine or generator function.
    """
    if isinstance(fn, classmethod | staticmethod):
        return type(fn)(transactional(fn.__func__))
    check_callable(fn)
    names, is_method = _first_parameters(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        places = [n for n, one in enumerate(args[: 1 + is_method]) if isinstance(one, _Target)]
        if places:
            n = places[0]
            return _with(args[n], lambda txn: fn(*args[:n], txn, *args[n + 1 :], **kwargs))
        found = [name for name in names if isinstance(kwargs.get(name), _Target)]
        if found:
            name = found[0]
            return _with(kwargs[name], lambda txn: fn(*args, **kwargs | {name: txn}))
        given = args[is_method] if len(args) > is_method else None
        raise InvalidInputError(
            f"the first argument must be a RunScope or a Transaction, not {type(given).__name__}",
            argument="target",
        )

    return call


def _with(target: _Target, fn: Callable[[Transaction], T]) -> T:
    if isinstance(target, RunScope):
        return target.transact(fn)
    result = fn(target)
    check_result(result)
    return result


def _first_parameters(fn: Any) -> tuple[list[str], bool]:
    """The names under which the target may be given, and whether it may be the second."""
    try:
        names = list(inspect.signature(fn).parameters)
    except (ValueError, TypeError):
        names = []  # written in C
    owner = getattr(fn, "__qualname__", "").rpartition(".")[0]
    is_method = names[:1] in (["self"], ["cls"]) or (owner != "" and not owner.endswith("<locals>"))
    return names[: 1 + is_method], is_method
