"""One session of the Agents SDK in many processes: nothing is lost, nothing is mixed, whoever is killed.

More kills and turns with INMEM_EXHAUSTIVE=1; the figures are printed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from homes import Home, PostgresHome

pytest.importorskip("agents", reason="the extra `openai_agents` is not installed")

from session_workers import PER_CALL, SESSION, add, converse, pop, told
from support import Workers, kill_writer, wait_until, writer_pid

from inmem.adapters.openai_agents import InmemSession

EXHAUSTIVE = bool(os.environ.get("INMEM_EXHAUSTIVE"))
ADDERS = 4
CALLS = 200 if EXHAUSTIVE else 25
KILLS = 40 if EXHAUSTIVE else 4
ENDLESS = 1 << 30
TURNS = 40 if EXHAUSTIVE else 5


def disturb(home: Home) -> None:
    """Kill the writer, or on a server cut the connections of everybody."""
    if isinstance(home, PostgresHome):
        import psycopg

        with psycopg.connect(home.conninfo, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
    else:
        wait_until(lambda: writer_pid(Path(home.place)), "a writer serves")
        (Path(home.place) / "launches").unlink(missing_ok=True)  # launching backs off when many die
        kill_writer(Path(home.place))


def items_of(home: Home) -> list[Any]:
    with home.open(timeout_s=60.0) as db:
        return asyncio.run(InmemSession(SESSION, db).get_items())


def emptied(home: Home) -> None:
    with home.open(timeout_s=60.0) as db:
        asyncio.run(InmemSession(SESSION, db).clear_session())


def check_calls(found: list[tuple[int, int, int]]) -> dict[int, int]:
    """Each call whole, in one piece and once, those of a program in their order; how many each made."""
    made: dict[int, int] = {}
    for at in range(0, len(found), PER_CALL):
        by, call, _ = found[at]
        assert found[at : at + PER_CALL] == [(by, call, part) for part in range(PER_CALL)], f"at {at}"
        assert call == made.get(by, 0), f"call {call} of {by} at {at}"
        made[by] = call + 1
    return made


def test_many_add_and_many_pop(home: Home, workers: Workers) -> None:
    emptied(home)
    adders = [workers.start(add, by, home.place, by % 2 == 0, CALLS) for by in range(ADDERS)]
    workers.words.open_gate()
    assert [each.result() for each in adders] == [CALLS] * ADDERS
    found = told(items_of(home))
    assert check_calls(found) == dict.fromkeys(range(ADDERS), CALLS)
    poppers = [workers.start(pop, home.place) for _ in range(3)]
    popped = [told(each.result()) for each in poppers]
    assert sorted(itertools.chain(*popped)) == sorted(found)
    places = {each: at for at, each in enumerate(found)}
    for some in popped:
        assert [places[each] for each in some] == sorted((places[each] for each in some), reverse=True)
    assert items_of(home) == []


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("size", [0, 3 << 20], ids=["small", "in parts"])
def test_killed_while_they_add(home: Home, workers: Workers, rng: random.Random, size: int) -> None:
    emptied(home)
    numbers = itertools.count()
    kills = KILLS if size == 0 else max(2, KILLS // 4)

    def start() -> tuple[int, Any]:
        by = next(numbers)
        return by, workers.start(add, by, home.place, by % 2 == 0, ENDLESS, size)

    living = [start() for _ in range(ADDERS if size == 0 else 2)]
    workers.words.open_gate()
    for number in range(kills):
        before = workers.words.total(500)
        wait_until(lambda before=before: workers.words.total(500) > before + 2, "somebody adds", 60.0)
        time.sleep(rng.uniform(0, 0.01))
        if number % 2:
            disturb(home)
        else:
            index = rng.randrange(len(living))
            living[index][1].process.kill()
            living[index][1].process.wait()
            living[index] = start()
    before = workers.words.total(500)
    wait_until(lambda: workers.words.total(500) > before + 2, "they go on", 60.0)
    for _, worker in living:
        worker.process.kill()
        worker.process.wait()
    made = check_calls(told(items_of(home)))
    for by in range(next(numbers)):
        acknowledged = workers.words[by]
        assert acknowledged <= made.get(by, 0) <= acknowledged + 1, f"program {by}"
    print(f"{home.name}: {sum(made.values())} calls of {PER_CALL} items, {kills} kills: each once")


def test_turns_of_agents_under_a_fence(home: Home, workers: Workers) -> None:
    """Turns of several agents on one session do not mix, and a killed one gives it back."""
    emptied(home)
    some = [workers.start(converse, by, home.place, True, ENDLESS if by == 0 else TURNS) for by in range(3)]
    workers.words.open_gate()
    wait_until(lambda: workers.check() or workers.words[0] >= 2, "the first one talks", 60.0)
    some[0].process.kill()
    some[0].process.wait()
    if home.name == "local":  # on a server, who waits for a lease is told when its connection is cut
        disturb(home)
    for by in (1, 2):
        assert some[by].result(120.0) == [f"found {by}-{turn}" for turn in range(TURNS)]
    turns: list[tuple[str, list[str]]] = []
    for each in items_of(home):
        if each.get("role") == "user":
            turns.append((each["content"], []))
        else:
            turns[-1][1].append(each.get("call_id") or each["content"][0]["text"])
    whole = [asked for asked, after in turns if after == [asked, asked, f"found {asked}"]]
    broken = [asked for asked, after in turns if asked not in whole]
    assert len(broken) <= 1 and all(asked.startswith("0-") for asked in broken)
    done = {f"{by}-{turn}" for by in (1, 2) for turn in range(TURNS)}
    assert done | {f"0-{turn}" for turn in range(workers.words[0])} <= set(whole)
    assert len(set(whole)) == len(whole)


def test_turns_of_agents_without_a_fence(home: Home, workers: Workers) -> None:
    """They may mix, but nothing of any is lost: each question has its answer."""
    emptied(home)
    some = [workers.start(converse, by, home.place, False, TURNS) for by in range(3)]
    workers.words.open_gate()
    for by, worker in enumerate(some):
        assert worker.result() == [f"found {by}-{turn}" for turn in range(TURNS)]
    items = items_of(home)
    names = [f"{by}-{turn}" for by in range(3) for turn in range(TURNS)]
    assert sorted(each["content"] for each in items if each.get("role") == "user") == sorted(names)
    calls = [each["call_id"] for each in items if each.get("type") == "function_call"]
    outputs = [each["output"] for each in items if each.get("type") == "function_call_output"]
    assert sorted(calls) == sorted(outputs) == sorted(names)
