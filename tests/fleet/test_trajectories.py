"""The parsers of recorded runs: small files of every shape, and every way to be malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import inmem
from inmem.exchange.recorded import Rejected, Trajectory, find_files, parse_file, rebuild
from inmem.exchange.storable import MAX_DEPTH, Unstorable, convert, restore
from workers.judge.values import canonical, same

REAL_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def swe_step(number: int, **extra: Any) -> dict[str, Any]:
    return {
        "action": f"ls {number}\n",
        "observation": f"file-{number}",
        "response": "I look around.",
        "state": json.dumps({"open_file": f"f{number}", "working_dir": "/w"}) + "\n",
        "thought": "I look.",
        **extra,
    }


def swe_run(steps: int = 2) -> dict[str, Any]:
    history: list[dict[str, Any]] = [{"role": "system", "content": "Be good.", "agent": "main"}]
    for number in range(steps):
        history.append({"role": "assistant", "content": "I look.", "action": f"ls {number}\n"})
        history.append({"role": "user", "content": f"file-{number}"})
    return {
        "environment": "main",
        "trajectory": [swe_step(number) for number in range(steps)],
        "history": history,
        "info": {"exit_status": "submitted", "submission": "diff --git a b"},
    }


def tau_call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": function}],
    }


def tau_answer(call_id: str, name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}


def tau_run(**changes: Any) -> dict[str, Any]:
    return {
        "task_id": 7,
        "trial": 0,
        "reward": 1.0,
        "info": {"user_cost": None},
        "traj": [
            {"role": "system", "content": "Policy."},
            {"role": "user", "content": "Hello"},
            tau_call("c1", "get_user", '{"user_id": "mia"}'),
            tau_answer("c1", "get_user", '{"name": "Mia"}'),
            tau_call("c1", "get_user", '{"user_id": "ben"}'),  # ids repeat in real data
            tau_answer("c1", "get_user", '{"name": "Ben"}'),
            {"role": "assistant", "content": "Done."},
            {"role": "user", "content": "###STOP###"},
        ],
        **changes,
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def one(path: Path) -> Trajectory | Rejected:
    ((number, parsed),) = parse_file(path, path.name)
    assert number == 0
    return parsed


def good(path: Path) -> Trajectory:
    parsed = one(path)
    assert isinstance(parsed, Trajectory), parsed
    return parsed


def events_of(trajectory: Trajectory) -> list[tuple[str, Any]]:
    return [event for step in trajectory.steps for event in step.events]


def kv_of(trajectory: Trajectory) -> dict[str, Any]:
    return {key: value for step in trajectory.steps for key, value in step.kv.items()}


class TestSweAgent:
    def test_a_run_becomes_steps_with_events_and_state(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "a.traj", swe_run(2)))
        assert len(trajectory.steps) == 3
        assert [event_type for event_type, _ in events_of(trajectory)] == [
            "source", "system",
            "assistant", "user", "thought", "action", "observation",
            "assistant", "user", "thought", "action", "observation",
        ]  # fmt: skip
        assert trajectory.outcome == "completed"
        assert [step.status for step in trajectory.steps] == ["running", "running", "submitted"]
        assert trajectory.steps[-1].state["environment"] == {"open_file": "f1", "working_dir": "/w"}
        assert kv_of(trajectory)["submission"] == "diff --git a b"
        assert "submission" not in trajectory.steps[0].kv

    @pytest.mark.parametrize(
        "change",
        [
            {"trajectory": [swe_step(0, state={"open_file": "n/a", "working_dir": "/w"})]},
            {"trajectory": [swe_step(0, state="not JSON")]},
            {"trajectory": [swe_step(0, execution_time=0.25, messages=[{"role": "user"}], query=None)]},
            {"trajectory": [{}]},
            {"trajectory": [swe_step(number) for number in range(5)]},
            {"trajectory": []},
            {"history": []},
            {"info": {}},
            {"info": {"exit_status": None}},
            {"replay_config": '{"env": {}}', "lists": [1], "has": 1, "record": None},
        ],
    )
    def test_the_source_can_be_rebuilt_from_the_events(self, tmp_path: Path, change: Any) -> None:
        record = swe_run(2) | change
        trajectory = good(write(tmp_path / "a.traj", record))
        assert same(rebuild(events_of(trajectory)), record)
        assert same(trajectory.record, record)

    @pytest.mark.parametrize("missing", ["environment", "trajectory", "history", "info"])
    def test_a_missing_part_stays_missing(self, tmp_path: Path, missing: str) -> None:
        record = swe_run(2)
        del record[missing]
        assert same(rebuild(events_of(good(write(tmp_path / "a.traj", record)))), record)

    def test_history_only_is_cut_at_the_assistant(self, tmp_path: Path) -> None:
        record = {"history": swe_run(3)["history"]}
        trajectory = good(write(tmp_path / "a.traj", record))
        assert len(trajectory.steps) == 4
        assert trajectory.outcome == "unknown"
        assert trajectory.steps[-1].status == "unknown"

    def test_the_state_is_the_same_from_text_and_from_an_object(self, tmp_path: Path) -> None:
        state = {"open_file": "x", "working_dir": "/w"}
        for form in (state, json.dumps(state) + "\n"):
            record = swe_run(1) | {"trajectory": [swe_step(0, state=form)]}
            trajectory = good(write(tmp_path / "a.traj", record))
            assert trajectory.steps[-1].state["environment"] == state

    def test_another_exit_status_is_a_failure(self, tmp_path: Path) -> None:
        record = swe_run(1) | {"info": {"exit_status": "exit_cost"}}
        trajectory = good(write(tmp_path / "a.traj", record))
        assert (trajectory.outcome, trajectory.tags) == ("failed", ("swe-agent", "exit:exit_cost"))

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            ([], "is a list, expected an object"),
            ({}, "neither history nor trajectory"),
            ({"history": [], "trajectory": []}, "neither history nor trajectory"),
            ({"history": {}}, "history is an object, expected a list"),
            ({"history": [1]}, "history[0] is a number, expected an object"),
            ({"history": [{"content": "x"}]}, "history[0] has no role"),
            ({"history": [{"role": 1}]}, "history[0] has no role"),
            ({"history": [{"role": "user", "tool_calls": "x"}]}, "tool_calls is text"),
            ({"history": [{"role": "user", "tool_calls": [1]}]}, "['tool_calls'][0] is a number"),
            ({"history": [{"role": "user", "tool_calls": [{}]}]}, "['function'] is null"),
            ({"trajectory": ["x"]}, "trajectory[0] is text, expected an object"),
            ({"trajectory": [{"action": 1}]}, "trajectory[0]['action'] is a number, expected text"),
            ({"trajectory": [{"state": 3}]}, "trajectory[0]['state'] is a number"),
            (swe_run() | {"info": "x"}, "info is text, expected an object"),
        ],
    )
    def test_a_wrong_shape_is_rejected_with_its_place(
        self, tmp_path: Path, record: Any, reason: str
    ) -> None:
        parsed = one(write(tmp_path / "a.traj", record))
        assert isinstance(parsed, Rejected)
        assert reason in parsed.reason
        assert parsed.source == "a.traj"


class TestTauBench:
    def test_a_run_becomes_steps_with_calls_decoded(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "runs.json", [tau_run()]))
        assert len(trajectory.steps) == 4
        calls = [payload for event_type, payload in events_of(trajectory) if event_type == "tool_call"]
        assert [call["arguments"] for call in calls] == [{"user_id": "mia"}, {"user_id": "ben"}]
        assert [call["step"] for call in calls] == [1, 2]
        assert same(rebuild(events_of(trajectory)), tau_run())
        assert trajectory.steps[-1].state == {"step": 3, "calls": 2, "last_role": "user"}
        assert trajectory.steps[-1].status == "completed"
        assert trajectory.metadata["task_id"] == 7

    def test_a_repeated_call_id_is_answered_by_the_latest_call(self, tmp_path: Path) -> None:
        kv = kv_of(good(write(tmp_path / "runs.json", [tau_run()])))
        assert kv["lookup:get_user:mia"] == {"name": "Mia"}
        assert kv["lookup:get_user:ben"] == {"name": "Ben"}

    def test_an_error_answer_is_no_record(self, tmp_path: Path) -> None:
        traj = [tau_call("c", "get_user", '{"user_id": "x"}'), tau_answer("c", "get_user", "Error: no")]
        kv = kv_of(good(write(tmp_path / "runs.json", [tau_run(traj=traj)])))
        assert list(kv) == []

    def test_a_lost_reward_is_a_failure(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "runs.json", [tau_run(reward=0.0)]))
        assert trajectory.outcome == "failed"
        assert "reward:0.0" in trajectory.tags

    def test_arguments_that_are_no_json_are_kept_and_told(self, tmp_path: Path) -> None:
        record = tau_run(traj=[tau_call("c", "search", '{"cut')])
        trajectory = good(write(tmp_path / "runs.json", [record]))
        (call,) = (payload for kind, payload in events_of(trajectory) if kind == "tool_call")
        assert call["arguments_text"] == '{"cut'
        assert "arguments" not in call
        assert any("no JSON" in note for note in trajectory.notes)
        assert same(rebuild(events_of(trajectory)), record)

    def test_a_bad_record_does_not_harm_its_neighbours(self, tmp_path: Path) -> None:
        records = [tau_run(), "x", tau_run(trial=1), {"traj": []}, tau_run(trial=2)]
        parsed = list(parse_file(write(tmp_path / "runs.json", records), "runs.json"))
        assert [number for number, _ in parsed] == [0, 1, 2, 3, 4]
        assert [isinstance(one, Trajectory) for _, one in parsed] == [True, False, True, False, True]
        assert [one.source for _, one in parsed if isinstance(one, Rejected)] == [
            "runs.json[1]", "runs.json[3]"
        ]  # fmt: skip

    def test_only_what_is_wanted_is_mapped(self, tmp_path: Path) -> None:
        path = write(tmp_path / "runs.json", [tau_run(trial=number) for number in range(4)])
        assert [number for number, _ in parse_file(path, "runs.json", {1, 3})] == [1, 3]

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            ({}, "is an object, expected a list of runs"),
            (1, "is a number, expected a list of runs"),
            ([], "an empty list"),
            ([[]], "is a list, expected an object"),
            ([{"task_id": 1}], "no 'trial'"),
            ([tau_run(task_id=[])], "task_id is a list"),
            ([tau_run(trial=True)], "trial is true or false"),
            ([tau_run(reward="1")], "reward is text"),
            ([tau_run(traj={})], "traj is an object"),
            ([tau_run(traj=[])], "traj is empty"),
            ([tau_run(traj=[{"role": None}])], "traj[0] has no role"),
        ],
    )
    def test_a_wrong_shape_is_rejected_with_its_place(
        self, tmp_path: Path, data: Any, reason: str
    ) -> None:
        parsed = one(write(tmp_path / "runs.json", data))
        assert isinstance(parsed, Rejected)
        assert reason in parsed.reason


def bodies(trajectory: Trajectory, step: int) -> list[tuple[str | None, Any]]:
    return [(trace.parent_id, trace.body) for trace in trajectory.steps[step].traces]


class TestTraces:
    def test_a_step_is_a_tree_with_its_calls_and_their_results(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "runs.json", [tau_run()]))
        assert bodies(trajectory, 1) == [
            (None, inmem.Custom("Step", {
                "step": 1, "roles": ["assistant", "tool"], "entries": ["lookup:get_user:mia"],
                "state": {"last_role": "tool", "calls": 1, "step": 1},
            })),
            ("s000001", inmem.ToolCall("get_user", {"user_id": "mia"}, '{"name": "Mia"}')),
        ]  # fmt: skip
        assert bodies(trajectory, 3)[1] == ("s000003", inmem.Thought("Done."))

    def test_ids_are_unique_in_a_run_whatever_the_ids_of_calls_are(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "runs.json", [tau_run()]))
        ids = [trace.id for step in trajectory.steps for trace in step.traces]
        assert len(ids) == len(set(ids)) == 4 + 2 + 1
        assert ids == sorted(ids, key=str)

    def test_an_action_and_its_observation_are_a_tool_call(self, tmp_path: Path) -> None:
        trajectory = good(write(tmp_path / "a.traj", swe_run(1)))
        assert [body for _, body in bodies(trajectory, 1)][1:] == [
            inmem.Thought("I look."), inmem.ToolCall("ls", {"action": "ls 0\n"}, "file-0")
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "observation",
        ["EXECUTION TIMED OUT", "x\nbash: lx: command not found", "Traceback (most recent call last):\n  x"],
    )
    def test_a_failed_call_has_its_error_below_it(self, tmp_path: Path, observation: str) -> None:
        record = swe_run(0) | {"trajectory": [swe_step(0, observation=observation, execution_time=0.5)]}
        trajectory = good(write(tmp_path / "a.traj", record))
        call, error = trajectory.steps[1].traces[-2:]
        assert isinstance(call.body, inmem.ToolCall) and call.body.duration_ms == 500
        assert isinstance(error.body, inmem.ErrorTrace) and error.parent_id == call.id
        assert error.body.message in observation

    def test_an_error_answer_is_an_error(self, tmp_path: Path) -> None:
        traj = [tau_call("c", "get_user", '{"user_id": "x"}'), tau_answer("c", "get_user", "Error: no")]
        trajectory = good(write(tmp_path / "runs.json", [tau_run(traj=traj, reward=0.0)]))
        assert [body for _, body in bodies(trajectory, 1)][2:] == [
            inmem.ErrorTrace("tool", "Error: no", recoverable=True),
            inmem.ErrorTrace("run", "reward 0.0", recoverable=False),
        ]

    def test_an_answer_in_a_later_step_names_the_step_of_its_call(self, tmp_path: Path) -> None:
        traj = [
            tau_call("c", "search", "{}"), {"role": "assistant", "content": "Wait."},
            tau_answer("c", "search", "found"), tau_answer("d", "search", "by nobody"),
        ]  # fmt: skip
        trajectory = good(write(tmp_path / "runs.json", [tau_run(traj=traj)]))
        assert [body for _, body in bodies(trajectory, 2)][2:] == [
            inmem.Custom("Result", {"of step": 1, "result": "found"}),
            inmem.Custom("Result", {"of step": None, "result": "by nobody"}),
        ]

    @pytest.mark.parametrize("status", ["exit_cost", "", "x" * 300, "a\0b", "\ud800"])
    def test_any_exit_status_is_a_tag_and_an_error(self, tmp_path: Path, status: str) -> None:
        record = swe_run(1) | {"info": {"exit_status": status}}
        trajectory = good(write(tmp_path / "a.traj", record))
        assert trajectory.outcome == "failed"
        assert trajectory.error and trajectory.error.startswith("exit status ")
        with inmem.open() as db:
            run = db.runs.create_run(tags=trajectory.tags, metadata=trajectory.metadata)
            assert run.tags == trajectory.tags
            db.runs.fail_run(run.run_id, trajectory.error)


class TestMalformedFiles:
    @pytest.mark.parametrize("suffix", [".traj", ".json"])
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty file"),
            (b" \n\t", "empty file"),
            (b"\x80\x81\xfe", "not a text file: byte 0"),
            (b"\x00\x01\x02", "invalid JSON"),
            (b'{"history": [{"role": "us', "invalid JSON, or cut short: line 1, column"),
            (b"{]", "invalid JSON"),
            (b'{"a": 1, "a": 2}', "'a' is there twice"),
            (b"[" * 200_000, "nested too deeply"),
            (b"[1" + b"0" * 5_000 + b"]", "an integer of 5,001 digits"),
        ],
    )
    def test_the_reason_is_told(self, tmp_path: Path, suffix: str, content: bytes, reason: str) -> None:
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        parsed = one(path)
        assert isinstance(parsed, Rejected)
        assert reason in parsed.reason

    def test_a_file_cut_at_any_byte_is_rejected(self, tmp_path: Path) -> None:
        whole = json.dumps(swe_run(1)).encode()
        path = tmp_path / "cut.traj"
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            assert isinstance(one(path), Rejected), end

    def test_a_directory_in_place_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "odd.traj").mkdir()
        assert find_files(tmp_path) == []
        parsed = one(tmp_path / "odd.traj")
        assert isinstance(parsed, Rejected)
        assert "cannot be read" in parsed.reason

    def test_deep_nesting_is_rejected(self, tmp_path: Path) -> None:
        deep: Any = "x"
        for _ in range(MAX_DEPTH + 1):
            deep = [deep]
        parsed = one(write(tmp_path / "a.traj", swe_run() | {"extra": deep}))
        assert isinstance(parsed, Rejected)
        assert "nested deeper than" in parsed.reason

    def test_only_known_suffixes_are_candidates(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        for name in ("b.traj", "a.json", "LICENSE", "notes.txt", "deep/c.traj"):
            write(tmp_path / name, "{}")
        found = [str(path.relative_to(tmp_path)) for path in find_files(tmp_path)]
        assert found == ["a.json", "b.traj", "deep/c.traj"]


class TestOddValues:
    """What JSON can hold and a value cannot is kept in a marked form and told, or refused."""

    @pytest.mark.parametrize(
        "value",
        [
            1 << 63,
            -(1 << 63) - 1,
            1 << 200,
            "lone \ud800 surrogate",
            {"$int": "5"},
            {"$utf-8": 1},
            {"$literal": {"$int": "5"}},
            {"a": [{"$int": 1 << 70}], "b": {"$int": 1, "c": 2}},
            [float("nan"), float("inf"), -0.0, 1, 1.0, True],
            {"": {"": [None]}},
        ],
    )
    def test_convert_and_restore_are_inverse(self, value: Any) -> None:
        converted = convert(value, "it", lambda text: None)
        assert canonical(restore(converted)) == canonical(value)

    def test_plain_values_are_not_touched(self) -> None:
        told: list[str] = []
        value = {"a": [1, -(1 << 63), (1 << 63) - 1, 1.5, None, True, "ü€", {}]}
        assert same(convert(value, "it", told.append), value)
        assert told == []

    def test_each_marked_value_is_told_with_its_place(self) -> None:
        told: list[str] = []
        convert({"a": [0, 1 << 64], "b": "\udfff"}, "it", told.append)
        assert len(told) == 2
        assert told[0].startswith("it['a'][1]: an integer beyond 64 bits")
        assert told[1].startswith("it['b']: a string with lone surrogates")

    def test_what_comes_out_can_be_stored(self) -> None:
        nested: Any = 1 << 64
        for _ in range(MAX_DEPTH // 2 - 1):
            nested = {"$int": nested}
        converted = convert(nested, "it", lambda text: None)
        depth = 0
        while isinstance(converted, dict):
            converted, depth = next(iter(converted.values())), depth + 1
        assert depth <= MAX_DEPTH + 1
        assert type(converted) is str

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ({"\ud800": 1}, "a key with a lone surrogate"),
            (["x" * (16 << 20)], "too big"),
        ],
    )
    def test_the_rest_is_refused(self, value: Any, reason: str) -> None:
        with pytest.raises(Unstorable, match=reason):
            convert(value, "it", lambda text: None)

    def test_a_trajectory_with_odd_values_is_kept_and_told(self, tmp_path: Path) -> None:
        record = swe_run(1)
        record["trajectory"][0] |= {"tokens": 1 << 70, "raw": "\ud83d"}
        trajectory = good(write(tmp_path / "odd.traj", record))
        assert len(trajectory.notes) == 2
        assert same(rebuild(events_of(trajectory)), record)


class TestIdentity:
    def test_the_run_id_follows_the_content_not_the_place(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        first = good(write(tmp_path / "a.traj", swe_run()))
        again = good(write(tmp_path / "elsewhere" / "a.traj", swe_run()))
        other = good(write(tmp_path / "elsewhere" / "a.traj", swe_run(3)))
        assert first.run_id == again.run_id != other.run_id

    @pytest.mark.parametrize("name", ["x" * 200, "ein Läufer/…"[:9], "a b+c", "."])
    def test_any_file_name_gives_a_run_id(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / (name.replace("/", "_") + ".traj"), swe_run())
        run_id = good(path).run_id
        assert len(run_id) <= 64
        assert all(char.isascii() and (char.isalnum() or char in "._:-") for char in run_id)

    def test_parsing_twice_gives_the_same(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.traj", swe_run())
        assert good(path) == good(path)


class TestRealData:
    def test_every_real_record_can_be_rebuilt_from_its_events(self) -> None:
        if not REAL_DATA.is_dir():
            pytest.skip(f"no recorded runs at {REAL_DATA}: nothing real to parse")
        counts = {"swe-agent": 0, "tau-bench": 0}
        for path in find_files(REAL_DATA):
            for _, parsed in parse_file(path, path.name):
                assert isinstance(parsed, Trajectory), parsed
                assert same(rebuild(events_of(parsed)), parsed.record), parsed.run_id
                assert parsed.notes == ()
                counts[parsed.source_format] += 1
        assert counts == {"swe-agent": 13, "tau-bench": 200}
