"""Facades whose methods take the run first, made from those that are bound to a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from inmem.errors import InvalidInputError
from inmem.keys import shorten

F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


class OfRun(Protocol):
    """The scope of a run, as it may be given in place of the run's id: an `inmem.RunScope`."""

    prefix: bytes
    namespace: bytes

    @property
    def run_id(self) -> str: ...


class Host(Protocol):
    """What the facades of a run are asked of: a database or a pipeline."""

    namespace_prefix: bytes

    def run(self, run_id: Any) -> Any: ...

    def shared(self, level: str) -> Any: ...


class ByRun(Generic[F_co]):
    """A primitive of every run: the facades of a run have it under `KIND`."""

    __slots__ = ("_database",)

    KIND: ClassVar[str]

    def __init__(self, database: Host) -> None:
        if not callable(getattr(database, "run", None)):
            raise InvalidInputError(
                f"database must be a Database, not {type(database).__name__}", argument="database"
            )
        self._database = database

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database!r})"

    def _of(self, run_id: str | OfRun) -> F_co:
        facade: F_co = getattr(self._database.run(run_id), self.KIND)
        return facade


def by_run(method: Callable[Concatenate[F, P], R]) -> Callable[Concatenate[ByRun[F], str | OfRun, P], R]:
    """A method of a run's facade, as one that takes the run first."""

    def call(self: ByRun[F], run_id: str | OfRun, *args: P.args, **kwargs: P.kwargs) -> R:
        # As `_of`, without its call.
        return method(getattr(self._database.run(run_id), self.KIND), *args, **kwargs)

    functools.update_wrapper(call, method)
    del call.__wrapped__  # type: ignore[attr-defined]
    first, *rest = inspect.signature(method).parameters.values()
    run = inspect.Parameter("run_id", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str | RunScope")
    call.__signature__ = inspect.Signature([first, run, *rest])  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]  # the run may be named: `put(run_id=...)`


def by_its_run(method: Callable[Concatenate[F, P], R]) -> Callable[Concatenate[ByRun[F], P], R]:
    """A method of a run's facade whose first argument says of which run it is."""
    first_name = [*inspect.signature(method).parameters][1]

    def call(self: ByRun[F], *args: P.args, **kwargs: P.kwargs) -> R:
        of = args[0] if args else kwargs.get(first_name)
        run_id = getattr(of, "run_id", None)
        if type(run_id) is not str:
            raise InvalidInputError(
                f"{first_name} is not of this kind: {shorten(of)}", argument=first_name
            )
        host = self._database
        run = host.shared(run_id[1:]) if run_id.startswith("@") else host.run(run_id)
        return method(getattr(run, self.KIND), *args, **kwargs)

    functools.update_wrapper(call, method)
    del call.__wrapped__  # type: ignore[attr-defined]
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*inspect.signature(method).parameters.values()]
    )
    return call  # type: ignore[return-value]
