"""The page of `inmem report`: messages in words, times of the run itself, a layout that holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from measured_page import look, measure
from support import stop_writer
from unit.test_cli_look import document, invoke

import inmem
from inmem.cli.durations import is_recording, lasted_s, took
from inmem.cli.gist import in_lines, line_of, message_of, trace_line, words_of
from inmem.exchange.recorded import import_recorded
from inmem.primitives.runs.rules import RunMetadata, RunStatus

LONG = "W" * 3000
HOSTILE = [
    "<b>bold</b><img src=x onerror=\"window.pwned = 1\">", "\u202egnp.exe \x00 \x1b[31m \u2028", LONG,
    "שלום עולם עם English בתוך", "a\nb\r\nc\n\n" + "x " * 3000, "漢" * 500, "__proto__",
]
RECORD = {
    "environment": "main",
    "history": [
        {"role": "system", "content": "You are a programmer."},
        {"role": "user", "content": "Mend the\n\nprogram."},
        {"role": "assistant", "content": "I look first."},
        {"role": "user", "content": "files"},
    ],
    "trajectory": [
        {"action": "ls", "observation": "files", "thought": "I look first.", "execution_time": 2.0},
        {"action": "submit", "observation": "", "thought": "Done.", "execution_time": 6.0},
    ],
    "info": {"exit_status": "submitted", "submission": "diff"},
}
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
DAY_US = 86_400_000_000


def now_us() -> int:
    return time.time_ns() // 1000


class Parts(HTMLParser):
    """The tags of a page, and the text in each element that has an id."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}
        self._at = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._at = dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        self._at = ""

    def handle_data(self, data: str) -> None:
        if self._at:
            self.texts[self._at] = self.texts.get(self._at, "") + data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports by the names of their runs."""
    place = tmp_path_factory.mktemp("rows")
    place.chmod(0o700)
    store = place / "store"
    for name, record in (("timed", RECORD), ("untimed", RECORD | {"trajectory": []})):
        (place / f"{name}.traj").write_text(json.dumps(record))
    with inmem.open(store) as db:
        stored = import_recorded(db, sorted(place.glob("*.traj")), "swe-agent")
        names = dict(zip(("recording", "no-times"), stored.run_ids, strict=True))
        db.runs.create_run(run_id="hostile", tags=[text[:40].replace("\0", "") for text in HOSTILE],
                           metadata={text[:40]: text for text in HOSTILE})
        run = db.run("hostile")
        for text in HOSTILE:
            run.events.append(text[:40].replace("\0", ""), {"message": {"role": "user", "content": text}})
            run.cells.set(text[:40].replace("\0", ""), text)
            run.kv.put(text[:40].replace("\0", ""), {"kept": [text]})
        bodies: list[Any] = [inmem.Thought(text) for text in HOSTILE]
        bodies += [inmem.ToolCall(text, {text: text}, text, 70.0) for text in HOSTILE]
        bodies += [inmem.Decision(text, [text], text, text) for text in HOSTILE]
        above, begin = None, now_us()
        for number, body in enumerate(bodies):  # each deeper, and each earlier than what it is below
            above = run.traces.record(body, parent_id=above, timestamp=begin - number * 1_000_000,
                                      tags=[HOSTILE[number % len(HOSTILE)][:40].replace("\0", "")])
        db.runs.fail_run("hostile", " ".join(HOSTILE))
        db.runs.create_run(run_id="empty")
        db.runs.create_run(run_id="traced")
        run = db.run("traced")
        begin = now_us() - 30 * DAY_US
        run.traces.record(inmem.Thought("long ago"), timestamp=begin)
        run.traces.record(inmem.ToolCall("dig", None, None, 5000.0), timestamp=begin + 60_000_000)
        db.runs.complete_run("traced")
        db.runs.create_run(run_id="going")
        run = db.run("going")
        run.traces.record(inmem.Thought("later than the record of the run"))
        run.events.append("tool", {"role": "tool", "content": json.dumps({"offers": [{"price": 9}]})})
    found = {}
    for name in ("hostile", "empty", "traced", "going", *names):
        found[name] = place / f"{name}.html"
        invoke("report", names.get(name, name), "-d", store, "-o", found[name])
    found["store"] = store
    found["run"] = Path(names["recording"])
    shown = document("run", names["recording"], "-d", store)["metadata"]
    assert shown["completed_at"] >= shown["created_at"]  # the times of the import
    assert "completed (–)" in invoke("run", names["recording"], "-d", store).stdout
    stop_writer(store)
    return found


def data_of(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(parts_of(page).texts["data"])
    return found


def parts_of(page: Path) -> Parts:
    parts = Parts()
    parts.feed(page.read_text())
    return parts


def facts_of(page: Path) -> dict[str, str]:
    return {name: text for name, text, _ in data_of(page)["facts"]}


def called(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "find", "arguments": arguments}}


class TestWords:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("as it is", "as it is"),
            ({"step": 1, "message": {"role": "user", "content": "said"}}, "said"),
            ({"step": 1, "fields": {"action": "ls", "observation": None}}, "ls"),
            ({"content": [{"type": "text", "text": "one"}, {"type": "image", "url": {}}]}, "one [image]"),
            ({"content": None, "tool_calls": [called("{\"q\": 1}")]}, "find(q: 1)"),
            ({"content": "so", "tool_calls": [called("no JSON"), called({})]}, "so find(no JSON) find(none)"),
            ({"content": "{\"a\": [1, {\"b\": null}]}"}, "a: [1, (b: none)]"),
            ({"content": "{no json}"}, "{no json}"),
            ({"a": True, "b": b"xyz", "c": [], "d": ""}, "a: true · b: 3 bytes · c: none · d: (empty)"),
            ([1, 2], "1, 2"), (None, "none"), (1.5, "1.5"), ({}, "none"),
            ({"message": {"odd": 1}}, "message: (odd: 1)"),
            ({"tool_calls": "no list", "content": 7}, "tool_calls: no list · content: 7"),
        ],
    )  # fmt: skip
    def test_the_message_and_not_its_json(self, value: Any, words: str) -> None:
        assert line_of(value, 200) == words

    def test_lines_stay_lines_only_where_they_are_wanted(self) -> None:
        assert message_of({"content": "a\r\n\tb\x00"}, 80) == "a\n    b\\u0000"
        assert line_of({"content": "a\r\n\tb\x00"}, 80) == "a b\\u0000"
        assert in_lines("\u202ex\x1b", 80) == "\\u202ex\\u001b"

    def test_a_limit_holds_whatever_the_value(self) -> None:
        deep: Any = "x"
        for _ in range(120):
            deep = [deep]
        for value in (LONG, [LONG] * 1000, {LONG: LONG}, deep, "[" * 5000 + "]" * 5000, "\n" * 9000):
            assert len(line_of(value, 100)) <= 101 and len(words_of(value, 100)) <= 101
        assert trace_line(trace(inmem.ToolCall("t", LONG, LONG)), 100).count("W") == 200

    def test_every_body_is_told_without_braces(self) -> None:
        told = {
            "a: 1 → b: 2": inmem.ToolCall("t", {"a": 1}, {"b": [2]}),
            "q → c: 3, because why": inmem.Decision("q", [1], {"c": 3}, "why"),
            "kind: d: 4 → 1,234 results": inmem.Query("kind", {"d": 4}, 1234),
            "e (confidence 0.5)": inmem.Thought("e", 0.5),
            "f: g": inmem.ErrorTrace("f", "g", True),
            "i: (j: 6)": inmem.Custom("h", {"i": {"j": 6}}),
        }
        assert [trace_line(trace(body), 80) for body in told.values()] == list(told)


def trace(body: Any) -> inmem.Trace:
    return inmem.Trace("t", None, body, 0, (), {})


def metadata(**more: Any) -> RunMetadata:
    given: dict[str, Any] = {
        "run_id": "r", "parent_run": None, "status": RunStatus.COMPLETED, "created_at": 5_000_000,
        "updated_at": 7_000_000, "completed_at": 7_000_000, "tags": (), "metadata": {}, "error": None,
        "version": 2,
    }
    return RunMetadata(**given | more)


class TestDurations:
    def test_of_a_run_it_is_that_of_its_record(self) -> None:
        assert lasted_s(metadata(), 0) == 2.0 and took(metadata(), 0) == "2.0 s"
        assert lasted_s(metadata(status=RunStatus.ACTIVE, completed_at=None), 9_000_000) == 4.0

    def test_a_clock_that_was_set_back_gives_none(self) -> None:
        assert lasted_s(metadata(completed_at=1), 0) is None and took(metadata(completed_at=1), 0) == "–"

    def test_a_recording_is_told_by_what_its_import_writes(self) -> None:
        about = {"name": "x", "format": "swe-agent", "digest": "0" * 64}
        assert is_recording(metadata(metadata=about)) and lasted_s(metadata(metadata=about), 0) is None
        for other in ({"digest": 5}, {"format": "json"}, {"format": ["swe-agent"]}, {"digest": "0"}):
            assert not is_recording(metadata(metadata=about | other))


class TestWhatThePageIsGiven:
    def test_no_row_is_json(self, pages: dict[str, Path]) -> None:
        data = data_of(pages["recording"])
        lines = [event[3] for event in data["events"]] + [row[6] for row in data["traces"]]
        lines += [cell[3] for cell in data["cells"]] + [entry[2] for entry in data["kv"]]
        assert not any(line.startswith(("{", "[")) or '": ' in line for line in lines)
        assert "Mend the program." in lines and "You are a programmer." in lines
        assert data_of(pages["going"])["events"][0][3] == "offers: [(price: 9)]"

    def test_the_whole_value_is_in_the_details(self, pages: dict[str, Path]) -> None:
        for event in data_of(pages["recording"])["events"]:
            assert {"payload", "stored", "hash"} <= {title for title, _ in event[4]}
            assert json.loads(dict(event[4])["payload"])
        user = next(event for event in data_of(pages["recording"])["events"] if event[2] == "user")
        assert dict(user[4])["message"] == "Mend the\n\nprogram."

    def test_a_recording_shows_no_time_of_its_import_as_its_own(self, pages: dict[str, Path]) -> None:
        data, facts = data_of(pages["recording"]), facts_of(pages["recording"])
        assert facts["took"] == "8.0 s in tools; the rest was not recorded"
        assert "imported" in facts and not {"created", "ended"} & set(facts) and not data["timed"]
        assert [text for _, text in data["ticks"]] == ["0 µs", "2.0 s", "4.0 s", "6.0 s", "8.0 s"]
        assert not any(event[1] for event in data["events"]) and not any(row[3] for row in data["traces"])
        bars = {row[5]: place for (is_trace, number, *place) in data["timeline"] if is_trace
                for row in [data["traces"][number]] if row[4] == "tool"}
        assert bars == {"ls": [0.0, 0.25], "submit": [0.25, 1.0]}

    def test_one_without_any_times_has_no_line_of_time(self, pages: dict[str, Path]) -> None:
        data = data_of(pages["no-times"])
        assert not data["timed"] and not data["lines"] and not data["ticks"]
        assert facts_of(pages["no-times"])["took"] == "not recorded"

    def test_an_imported_run_with_times_took_what_they_say(self, pages: dict[str, Path]) -> None:
        assert facts_of(pages["traced"])["took"] == "1m05s, by its traces"
        assert data_of(pages["traced"])["timed"]

    def test_a_run_that_goes_on_says_so(self, pages: dict[str, Path]) -> None:
        for name in ("going", "empty"):
            facts = facts_of(pages[name])
            assert facts["took"].endswith(" so far") and facts["ended"] == "not yet"
        empty = data_of(pages["empty"])
        assert not any(empty[kind] for kind in ("events", "traces", "timeline", "cells", "kv", "ticks"))

    def test_times_that_fall_change_no_order(self, pages: dict[str, Path]) -> None:
        data = data_of(pages["hostile"])
        for kind, rows in ((1, data["traces"]), (0, data["events"])):
            order = [number for is_trace, number, *_ in data["timeline"] if is_trace == kind]
            assert order == list(range(len(rows)))
        assert all(0 <= a <= b <= 1 for _, _, a, b in data["timeline"])

    def test_what_is_hostile_is_text(self, pages: dict[str, Path]) -> None:
        parts = parts_of(pages["hostile"])
        assert not {"img", "b", "iframe"} & set(parts.tags)
        text = json.dumps(json.loads(parts.texts["data"]), ensure_ascii=False)
        assert not set("\u202e\x00\x1b\u2028") & set(text)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("Chromium is not installed")
    with Browser(program) as one:
        yield one


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
class TestInABrowser:
    @pytest.mark.parametrize("name", ["hostile", "empty", "recording", "no-times", "traced", "going"])
    def test_it_fits_and_can_be_read(
        self, browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
    ) -> None:
        seen = look(browser, pages[name], width, scheme)
        assert not seen["problems"], seen
        assert seen["texts"] > 15 and seen["least"] >= 4.5
        assert bool(seen["tracks"]) == (name not in ("empty", "no-times"))

    def test_what_is_opened_fits_too(
        self, browser: Browser, pages: dict[str, Path], width: int, scheme: str
    ) -> None:
        look(browser, pages["hostile"], width, scheme)
        browser.evaluate("document.querySelectorAll('.row').forEach(row => row.click())")
        browser.evaluate("document.querySelector('header details').open = true")
        assert browser.evaluate("document.querySelectorAll('.details').length") > 50
        seen = measure(browser)
        assert not seen["problems"] and browser.messages == [], seen
        assert browser.evaluate("typeof window.pwned") == "undefined"


def test_the_measure_sees_what_is_wrong(browser: Browser, pages: dict[str, Path]) -> None:
    look(browser, pages["going"], 400, "light")
    for wrong in ("row.style.width = '900px'", "row.querySelector('.about').style.color = '#999'"):
        browser.open(pages["going"])
        browser.evaluate(f"(() => {{ const row = document.querySelector('.row'); {wrong}; }})()")
        assert measure(browser)["problems"], wrong


def test_the_keyboard_opens_a_row(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["going"])
    browser.evaluate("document.querySelector('.row').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert browser.evaluate("document.querySelectorAll('.details').length") == 1
    assert browser.evaluate("document.querySelector('.row').getAttribute('aria-expanded')") == "true"
