"""`inmem queue`: what is in the queues of a run, on a live store and on one that nobody serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stop_writer
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app

RUN = "trip"
EVIL = "\x1b[2J\u202e"
LONG = "x" * 30_000


def fill(path: Path) -> None:
    with inmem.open(path) as db:
        queues = db.run(RUN).queues
        queues.put_many("mail", [{"to": "ada"}, {"to": "alan"}, LONG, b"\0\xff"], max_attempts=3)
        queues.put("mail", "first", priority=9, key="the key")
        queues.put("mail", "later", delay_s=1000)
        for queue, end in (("dead", {"retry": False, "error": f"broke\n{EVIL}"}), ("evil " + EVIL, {})):
            queues.put(queue, EVIL, key=None if end else EVIL)
            if end:
                job = queues.claim(queue, worker="worker-1")
                assert job is not None
                queues.nack(job, **end)  # type: ignore[arg-type]
        queues.put("done", 1)
        job = queues.claim("done")
        assert job is not None
        queues.ack(job, {"result": 5})
        queues.put("held", 1)
        assert queues.claim("held", lease_s=1000, worker="worker-2") is not None
        queues.purge("empty")
        db.shared("agent").queues.put("all", 1)
        db.kv.put("plain", "k", 1)


@pytest.fixture(scope="module", params=["live", "replayed"])
def path(request: pytest.FixtureRequest, module_scratch: Path) -> Iterator[Path]:
    store = module_scratch / request.param
    fill(store)
    if request.param == "live":
        with inmem.open(store):
            yield store
    else:
        stop_writer(store)
        yield store
    stop_writer(store)


def invoke(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["queue", *map(str, arguments)], env={"COLUMNS": "100"})
    assert done.exit_code == code, (done.output, done.exception)
    return done


def lines(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in invoke(*arguments, "--json").stdout.splitlines()]


def document(*arguments: object, code: int = 0) -> Any:
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


class TestLooking:
    def test_queues_and_their_counts(self, path: Path) -> None:
        found = {line.pop("queue"): line for line in lines("list", RUN, "-d", path)}
        assert list(found) == ["dead", "done", "evil " + EVIL, "held", "mail"]
        assert found["mail"] == {"ready": 5, "delayed": 1, "claimed": 0, "dead": 0}
        assert found["dead"]["dead"] == found["held"]["claimed"] == 1
        shown = invoke("list", RUN, "-d", path).stdout.splitlines()
        assert shown[0].split() == ["dead", "1", "dead"] and shown[1].split() == ["done", "empty"]
        assert shown[-1].split(None, 1)[1].strip() == "5 ready, 1 delayed"
        assert [line["queue"] for line in lines("list", "@agent", "-d", path)] == ["all"]
        assert "plain has no queues" in invoke("list", "plain", "-d", path).stderr
        assert document("counts", RUN, "mail", "-d", path) == {
            "run": RUN, "queue": "mail", "ready": 5, "delayed": 1, "claimed": 0, "dead": 0
        }
        assert "ready    5" in invoke("counts", RUN, "mail", "-d", path).stdout
        assert document("counts", RUN, "none", "-d", path)["ready"] == 0

    def test_the_jobs_that_are_next(self, path: Path) -> None:
        found = lines("peek", RUN, "mail", "-d", path)
        assert [job["id"] for job in found] == ["mail/4", "mail/0", "mail/1", "mail/2", "mail/3"]
        assert (found[0]["priority"], found[0]["key"], found[1]["payload"]) == (9, "the key", {"to": "ada"})
        assert found[4]["payload"] == {"$bytes": "AP8="} and found[1]["max_attempts"] == 3
        assert len(lines("peek", RUN, "mail", "-d", path, "--limit", 2)) == 2
        done = invoke("peek", RUN, "mail", "-d", path)
        assert done.stdout.splitlines()[0].split() == ["mail/4", '"first"'] and LONG not in done.stdout
        assert "--full shows all" in done.stderr
        assert LONG in invoke("peek", RUN, "mail", "-d", path, "--full").stdout
        assert "has no jobs that are ready" in invoke("peek", RUN, "done", "-d", path).stderr

    def test_dead_ones(self, path: Path) -> None:
        (job,) = lines("dead", RUN, "dead", "-d", path)
        assert (job["id"], job["state"], job["errors"], job["worker"]) == (
            "dead/0", "dead", [f"broke\n{EVIL}"], "worker-1"
        )
        assert "1 of 5  broke" in invoke("dead", RUN, "dead", "-d", path).stdout
        assert "has no dead jobs" in invoke("dead", RUN, "mail", "-d", path).stderr

    def test_one_job(self, path: Path) -> None:
        done = document("get", RUN, "done/0", "-d", path)
        assert (done["run"], done["state"], done["payload"]) == (RUN, "done", None)
        assert done["result"] == {"result": 5}
        shown = invoke("get", RUN, "done/0", "-d", path).stdout
        assert '{"result": 5}' in shown and "done/0" in shown
        shown = invoke("get", RUN, "held/0", "-d", path).stdout
        assert "worker-2" in shown and "until" in shown and "1 of 5" in shown
        assert "the key" in invoke("get", RUN, "mail/4", "-d", path).stdout
        assert "has no job 'mail/99'. See which" in invoke("get", RUN, "mail/99", "-d", path, code=1).stderr
        assert document("get", RUN, "mail/99", "-d", path, code=1)["error"]["code"] == "not_found"
        assert document("get", RUN, "mail", "-d", path, code=1)["error"]["code"] == "invalid_input"

    def test_nothing_that_a_terminal_obeys_comes_out(self, path: Path) -> None:
        evil = "evil " + EVIL
        for words in (("list", RUN), ("peek", RUN, evil), ("dead", RUN, "dead"), ("get", RUN, "dead/0"),
                      ("get", RUN, evil + "/0"), ("get", RUN, evil + "/1"), ("counts", RUN, evil),
                      ("peek", RUN, "no " + EVIL)):  # fmt: skip
            for more in ((), ("--full",) if words[0] in ("peek", "dead", "get") else ()):
                code = 1 if words[-1] == evil + "/1" else 0
                for line in invoke(*words, *more, "-d", path, code=code).output.split("\n"):
                    assert line.isprintable(), (words, line)

    @pytest.mark.parametrize("words", [
        ("list", "nobody"), ("counts", "nobody", "q"), ("peek", "nobody", "q"), ("dead", "nobody", "q"),
        ("get", "nobody", "q/0"),
    ])  # fmt: skip
    def test_a_run_that_is_none_is_an_error(self, path: Path, words: tuple[str, ...]) -> None:
        assert "there is no run nobody" in invoke(*words, "-d", path, code=1).stderr
        assert document(*words, "-d", path, code=1)["error"]["code"] == "run_not_found"

    def test_no_database_is_one_line_with_a_hint(self, tmp_path: Path) -> None:
        for words in (("list", RUN), ("put", RUN, "q", "1"), ("requeue", RUN, "q/0"), ("purge", RUN, "q")):
            done = invoke(*words, "-d", tmp_path / "none", code=1)
            assert done.stderr.count("\n") == 1 and "inmem serve" in done.stderr and not done.stdout

    @pytest.mark.parametrize("name", ["list", "counts", "peek", "dead", "get", "put", "requeue", "purge"])
    def test_help_has_an_example(self, name: str) -> None:
        shown = invoke(name, "--help").output
        assert f"Example: inmem queue {name} " in " ".join(shown.split()).replace("│ ", "")
        assert "--json" in shown and "INMEM_PATH" in shown

    def test_the_summary_of_a_run_has_them(self, path: Path) -> None:
        def run(name: str) -> str:
            return CliRunner().invoke(app, ["run", name, "-d", str(path)], env={"COLUMNS": "100"}).stdout

        assert "queues    5" in run(RUN) and "5 ready, 1 delayed" in run(RUN)
        assert "queues" not in run("plain")


class TestWriting:
    @pytest.fixture
    def store(self, store_path: Path) -> Iterator[Path]:
        with inmem.open(store_path) as db:
            db.kv.put(RUN, "k", 1)
            yield store_path

    def test_a_job_is_put(self, store: Path) -> None:
        assert document("put", RUN, "mail", '{"to": "ada"}', "-d", store) == {
            "run": RUN, "queue": "mail", "id": "mail/0"
        }
        said = invoke(
            "put", RUN, "mail", "plain text", "--text", "--priority", 5, "--key", "k", "--max-attempts", 2,
            "-d", store,
        )
        assert said.stdout == "mail/1 is in the queue\n"
        assert document("put", RUN, "mail", "1", "--key", "k", "-d", store)["id"] == "mail/1"
        invoke("put", "@app", "mail", "[1]", "--delay", 100, "-d", store)
        piped = CliRunner().invoke(app, ["queue", "put", RUN, "in", "-", "-d", str(store)], input="[5]")
        assert piped.exit_code == 0
        with inmem.open(store) as db:
            jobs = db.queues.claim_many(RUN, "mail", 5)
            assert [job.payload for job in jobs] == ["plain text", {"to": "ada"}]
            assert db.queues.get(RUN, "mail/1").max_attempts == 2  # type: ignore[union-attr]
            assert db.shared("app").queues.counts("mail").delayed == 1
            assert db.queues.get(RUN, "in/0").payload == [5]  # type: ignore[union-attr]

    @pytest.mark.parametrize(("words", "code"), [
        (("put", RUN, "mail", "no JSON"), "invalid_input"), (("put", RUN, "mail", "NaN"), "invalid_input"),
        (("put", RUN, "", "1"), "invalid_key"), (("put", RUN, "q", "1", "--delay", "-1"), "invalid_input"),
        (("put", RUN, "q", "1", "--priority", 1 << 31), "invalid_input"),
        (("put", RUN, "q", "1", "--max-attempts", 0), "invalid_input"),
        (("requeue", RUN, "q/0"), "job_not_found"), (("requeue", RUN, "q"), "invalid_input"),
        (("purge", RUN, "q", "--state", "gone"), "invalid_input"),
    ])  # fmt: skip
    def test_what_is_refused(self, store: Path, words: tuple[Any, ...], code: str) -> None:
        assert document(*words, "-d", store, code=1)["error"]["code"] == code
        assert invoke(*words, "-d", store, code=1).stderr.startswith("inmem: ")

    def test_dead_ones_are_put_back_and_others_removed(self, store: Path) -> None:
        with inmem.open(store) as db:
            queues = db.run(RUN).queues
            queues.put_many("q", range(3), max_attempts=1)
            for job in queues.claim_many("q", 2):
                queues.nack(job)
            assert document("requeue", RUN, "q/0", "-d", store) == {
                "run": RUN, "id": "q/0", "requeued": True
            }
            assert "is ready" in invoke("requeue", RUN, "q/0", "-d", store, code=1).stderr
            assert invoke("requeue", RUN, "q/1", "-d", store).stdout == "q/1 is ready again\n"
            assert queues.counts("q").ready == 3
            assert document("purge", RUN, "q", "--state", "dead", "-d", store)["removed"] == 0
            assert invoke("purge", RUN, "q", "-d", store).stdout == "3 jobs are removed\n"
            assert queues.counts("q").ready == 0
