"""`open(default=fn)`: what would be refused goes through it, wherever a value is given."""

from __future__ import annotations

import copy
import datetime
import decimal
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import inmem

WHEN = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
VALUE = {"when": WHEN, "in": [1, {"deep": (uuid.UUID(int=7), "x")}, b"raw"], "n": 1 << 70}
STORED = {"when": "2026-01-02 00:00:00+00:00", "in": [1, {"deep": [str(uuid.UUID(int=7)), "x"]}, b"raw"],
          "n": str(1 << 70)}


def plain(value: object) -> Any:
    """A tuple as a list, whose items go through this again; anything else as text."""
    return list(value) if isinstance(value, tuple) else str(value)


WRITES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "put": (lambda s: s.kv.put("k", VALUE), lambda s: s.kv.get("k")),
    "put_many": (lambda s: s.kv.put_many({"k": VALUE}), lambda s: s.kv.get("k")),
    "merge": (lambda s: s.kv.merge("k", {"m": VALUE}), lambda s: s.kv.get("k")["m"]),
    "append": (lambda s: s.events.append("t", VALUE), lambda s: s.events.head().payload),
    "append_many": (lambda s: s.events.append_many([("t", VALUE)]), lambda s: s.events.head().payload),
    "init": (lambda s: s.cells.init("c", VALUE), lambda s: s.cells.read("c").value),
    "set": (lambda s: s.cells.set("c", VALUE), lambda s: s.cells.read("c").value),
    "cas": (lambda s: s.cells.cas("c", s.cells.init("c", 1), VALUE), lambda s: s.cells.read("c").value),
    "transition": (
        lambda s: (s.cells.init("c", 1), s.cells.transition("c", lambda _: (VALUE, 1))),
        lambda s: s.cells.read("c").value,
    ),
    "record": (
        lambda s: s.traces.record(inmem.Custom("t", {"v": VALUE}), id="t", metadata=VALUE),
        lambda s: [s.traces.get("t").body.data["v"], s.traces.get("t").metadata][-1],
    ),
    "body": (
        lambda s: s.traces.record(inmem.ToolCall("t", {"v": VALUE}), id="t"),
        lambda s: s.traces.get("t").body.arguments["v"],
    ),
    "create_run": (
        lambda s: s.runs.create_run(metadata={"v": VALUE}), lambda s: s.runs.get_run().metadata["v"]
    ),
    "update_metadata": (
        lambda s: (s.runs.create_run(), s.runs.update_metadata({"v": VALUE})),
        lambda s: s.runs.get_run().metadata["v"],
    ),
}


PIPED = ("put", "put_many", "merge", "append", "append_many")  # a pipeline has no other writes


@pytest.fixture(scope="module")
def with_and_without() -> Iterator[tuple[inmem.Database, inmem.Database]]:
    """Two handles of one store."""
    with inmem.open(default=plain) as db, inmem.open(db.path) as without:
        yield db, without


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in WRITES for form in ("scope", "transaction")] + [(n, "pipeline") for n in PIPED],
)
def test_every_write(
    with_and_without: tuple[inmem.Database, inmem.Database], name: str, form: str
) -> None:
    (write, read), (db, without) = WRITES[name], with_and_without
    scope = db.run(f"{name}-{form}")
    if form == "scope":
        write(scope)
    elif form == "transaction":
        scope.transact(lambda txn: (write(txn), None)[1])
    else:
        with db.pipeline() as p:
            write(p.run(scope.run_id))
    assert read(scope) == STORED
    with pytest.raises(inmem.InvalidValueError):
        write(without.run(f"other-{scope.run_id}"))


def test_the_record_that_is_returned_is_as_stored() -> None:
    with inmem.open(default=plain) as db:
        assert db.runs.create_run(run_id="r", metadata={"v": VALUE}) == db.runs.get_run("r")


def test_it_is_called_for_what_is_refused_and_for_nothing_else() -> None:
    seen: list[Any] = []

    def default(value: Any) -> Any:
        seen.append(value)
        return None

    with inmem.open(default=default) as db:
        db.kv.put("r", "fine", {"a": [1, 2.5, "x", b"y", None, True, {"b": -(1 << 63)}]})
        assert seen == []
        db.kv.put("r", "k", [decimal.Decimal("1.5"), {"s": {1}}, 1 << 63, "ok", "\ud800"])
        assert seen == [decimal.Decimal("1.5"), {1}, 1 << 63, "\ud800"]
        assert db.kv.get("r", "k") == [None, {"s": None}, None, "ok", None]
        db.kv.put("r", "whole", object())
        assert db.kv.get("r", "whole") is None and len(seen) == 5


def test_what_it_gives_is_refused_too_or_raises() -> None:
    same: Any = inmem.open(default=lambda value: value)
    with same as db, pytest.raises(inmem.InvalidValueError, match="datetime"):
        db.kv.put("r", "k", [WHEN])
    with inmem.open(default=lambda value: [(value,)]) as db, pytest.raises(inmem.InvalidValueError):
        db.kv.put("r", "k", WHEN)  # for ever
    with inmem.open(default=lambda value: 1 / 0) as db:
        with pytest.raises(ZeroDivisionError):
            db.kv.put("r", "k", WHEN)
        for wrong in ({1: 2}, {"a": {None: 1}}):  # keys are not its business, as with json.dumps
            with pytest.raises(inmem.InvalidValueError, match="key"):
                db.kv.put("r", "k", wrong)
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(inmem.InvalidValueError, match="nested"):
            db.kv.put("r", "k", circle)
        assert db.kv.list("r") == []
    for bad in (7, "str", [str]):
        with pytest.raises(inmem.InvalidInputError, match="default"):
            inmem.open(default=bad)  # type: ignore[arg-type]


async def later(value: object) -> str:
    return str(value)


def test_it_is_a_plain_function_and_travels_with_the_handle() -> None:
    with pytest.raises(inmem.InvalidInputError, match="plain function"):
        inmem.open(default=later)
    with inmem.open(default=plain) as db:
        for again in (pickle.loads(pickle.dumps(db)), copy.copy(db)):  # noqa: S301
            with again:
                again.kv.put("r", "k", (1, WHEN))
                assert again.kv.get("r", "k") == [1, str(WHEN)]
