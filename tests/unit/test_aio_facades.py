"""The facades of asyncio say what those say that they are written from; what they do is in `contracts`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
from awaited import Done

import inmem
import inmem.primitives.facades as table
from inmem.aio import driving, facade_sets, generate
from inmem.aio.wrapping import without_example
from inmem.errors import ConflictError, InvalidInputError
from inmem.host.interrupts import awaited
from inmem.primitives.byrun import ByRun
from inmem.steps import Pause, Raised, Steps, Until, at_once

SYNC = generate.facades()


def twin_of(cls: type) -> Any:
    return getattr(sys.modules[f"{generate.PACKAGE}.{cls.__module__.split('.')[2]}"], f"Async{cls.__name__}")


TWINS = [twin_of(cls) for cls in SYNC]


def public(cls: type) -> dict[str, Any]:
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_") and name != "KIND"}


def told(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter; `by_run` says of the run what users call its type."""
    return parameter.replace(annotation=str(parameter.annotation).replace("RunScope", "OfRun"))


METHODS = [pytest.param(cls, name, id=f"{cls.__name__}.{name}") for cls in SYNC for name in public(cls)]


def test_the_files_are_what_is_written_now() -> None:
    assert generate.main(["--check"]) == 0


def test_a_stale_file_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = generate.files()
    monkeypatch.setattr(generate, "files", lambda: {path: text + "\n" for path, text in real.items()})
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.count("is stale") == len(real)
    assert {path: path.read_text("utf-8") for path in real} == real


def test_every_facade_of_a_handle_has_its_twin() -> None:
    used = {value for value in vars(table).values() if isinstance(value, type) and generate.is_facade(value)}
    assert len(used) > 15 and used <= set(SYNC)
    for cls in SYNC:
        twin = twin_of(cls)
        bases = [twin_of(base) for base in cls.__mro__[1:] if base in SYNC]
        assert [base for base in twin.__mro__[1:] if base in TWINS] == bases
        assert public(twin).keys() == public(cls).keys()
        assert twin.__doc__ == without_example(cls.__doc__)
        if issubclass(cls, ByRun):
            assert twin.KIND == cls.KIND


@pytest.mark.parametrize(("cls", "name"), METHODS)
def test_methods_agree(cls: type, name: str) -> None:
    ours, theirs = public(twin_of(cls))[name], public(cls)[name]
    got, wanted = inspect.signature(ours), inspect.signature(theirs)
    assert [*map(told, got.parameters.values())] == [*map(told, wanted.parameters.values())]
    if got.return_annotation is inspect.Signature.empty:
        assert issubclass(cls, ByRun), "what is made by `by_run` does not say what it returns"
    else:
        returns = str(wanted.return_annotation)
        streams = returns.startswith("Iterator[")
        is_context = generate.is_context(getattr(inmem, returns, None))
        assert got.return_annotation == (f"Async{returns}" if streams or is_context else returns)
        assert inspect.iscoroutinefunction(ours) is not (streams or is_context)
    assert theirs.__doc__ and ours.__doc__ == without_example(theirs.__doc__)
    assert ">>>" not in ours.__doc__


def test_handles_have_the_same_facades() -> None:
    classes = [value for value in vars(table).values() if isinstance(value, type)]
    kinds = [cls for cls in classes if cls.__module__ == table.__name__]
    assert len(kinds) == 6
    for cls in kinds:
        twin = getattr(facade_sets, f"Async{cls.__name__}")
        assert inspect.signature(twin) == inspect.signature(cls)
        assert twin.__doc__ == cls.__doc__
        ours, theirs = (inspect.getsource(each.__init__) for each in (twin, cls))
        assert [line.split(" = ")[0] for line in ours.splitlines() if "self." in line] == [
            line.split(" = ")[0] for line in theirs.splitlines() if "self." in line
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("What it is.", "What it is."),
        ("What.\n\n    More.\n\n    >>> 1 + 1\n    2\n\n    Raises:\n        E: x.\n    ",
         "What.\n\nMore.\n\nRaises:\n    E: x."),
        ("What.\n\n    >>> 1 + 1\n    2\n    ", "What."),
    ],
)  # fmt: skip
def test_examples_are_left_out(text: str | None, expected: str | None) -> None:
    assert without_example(text) == expected


# --- a loop that takes steps ------------------------------------------------------------------------


def test_steps_get_results_and_errors() -> None:
    error = InvalidInputError("wrong")

    async def fails() -> None:
        raise error

    def steps() -> Steps[list[Any]]:
        first = yield Done(1)
        nothing = yield Pause(0.001)
        try:
            yield fails()
        except InvalidInputError as caught:
            again = yield Done(caught)
        return [first, nothing, again]

    assert asyncio.run(driving.driven(steps())) == [1, None, error]
    assert asyncio.run(driving.driven(at_once(5))) == 5


def test_steps_raise_what_they_raise() -> None:
    def refuses() -> Steps[None]:
        yield Done(1)
        raise InvalidInputError("wrong")

    def raised() -> Steps[Raised]:
        yield Done(1)
        return Raised(KeyError("k"))

    with pytest.raises(InvalidInputError):
        asyncio.run(driving.driven(refuses()))
    with pytest.raises(KeyError):
        asyncio.run(driving.driven(raised()))


@pytest.mark.parametrize("step", [Pause(30), asyncio.sleep], ids=["pause", "call"])
def test_steps_are_told_of_a_cancellation(step: Any) -> None:
    told: list[str] = []

    def steps() -> Steps[None]:
        try:
            yield step if isinstance(step, Pause) else step(30)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            told.append("ended")

    async def main() -> None:
        async with asyncio.timeout(0.01):
            await driving.driven(steps())

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert told == ["cancelled", "ended"]


def test_a_stream_waits_between_its_items() -> None:
    asked: list[Any] = []

    async def wait(fn: Any, timeout_s: float | None) -> Any:
        asked.append((fn, timeout_s))
        return "found"

    def steps() -> Any:
        try:
            yield 1
            yield (yield Until(len, 3))
            yield Pause(0.001)
            yield 2
        finally:
            asked.append("closed")

    async def main(enough: int) -> list[Any]:
        items: list[Any] = []
        stream: Any = driving.streamed(steps(), wait)
        async for item in stream:
            items.append(item)
            if len(items) == enough:
                break
        await stream.aclose()
        return items

    assert asyncio.run(main(9)) == [1, "found", 2]
    assert asked == [(len, 3), "closed"]
    assert asyncio.run(main(1)) == [1]
    assert asked == [(len, 3), "closed", "closed"]


def refused(times: int, error: Exception) -> tuple[Callable[[float], Any], list[float]]:
    lefts: list[float] = []

    async def attempt(left_s: float) -> str:
        lefts.append(left_s)
        if len(lefts) <= times:
            raise error
        return "done"

    return lambda left_s: awaited(attempt, left_s), lefts


def test_trying_again() -> None:
    conflict = ConflictError("lost", read_version=1, committed_version=2)
    attempt, lefts = refused(2, conflict)
    assert asyncio.run(driving.retrying(attempt, max_attempts=3, timeout_s=5)) == "done"
    assert len(lefts) == 3 and 5 >= lefts[0] > lefts[1] > lefts[2] > 0
    attempt, lefts = refused(3, conflict)
    with pytest.raises(ConflictError):
        asyncio.run(driving.retrying(attempt, max_attempts=3, timeout_s=5))
    assert len(lefts) == 3
    attempt, lefts = refused(3, InvalidInputError("wrong"))
    with pytest.raises(InvalidInputError):
        asyncio.run(driving.retrying(attempt, max_attempts=3, timeout_s=5))
    assert len(lefts) == 1
    attempt, lefts = refused(9, conflict)
    with pytest.raises(InvalidInputError, match="max_attempts"):
        asyncio.run(driving.retrying(attempt, max_attempts=0, timeout_s=5))
    with pytest.raises(ConflictError):
        asyncio.run(driving.retrying(attempt, max_attempts=99, timeout_s=1e-9))
    assert len(lefts) == 1
