"""`inmem report`, in a real browser: it loads, it works, and nothing that was stored runs in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from support import stop_writer
from unit.test_cli_look import invoke

import inmem
from inmem.cli.scale import Scale

HOSTILE = [
    "</script><script>window.pwned = 1; document.title = 'pwned'</script>",
    "<img src=x onerror=\"window.pwned = 1\">",
    "\"'><svg onload=window.pwned=1>",
    "<!--<script>",
    "]]></script><style>body{display:none}</style>",
    "javascript:window.pwned=1",
    "${window.pwned=1} {{data}} {{policy}}",
    "\u202e\u2066gnp.exe\u2069 \x1b[31m \u2028 \x00"[:-1],
    "__proto__",
]
TRACES = 1000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with a thousand traces and all that is hostile, wherever it can be."""
    place = tmp_path_factory.mktemp("report")
    place.chmod(0o700)
    store = place / "store"
    with inmem.open(store) as db:
        db.runs.create_run(run_id="hostile", tags=HOSTILE, metadata={text: text for text in HOSTILE})
        db.runs.fail_run("hostile", " ".join(HOSTILE))
        run = db.run("hostile")
        for text in HOSTILE:
            run.events.append(text, {text: [text, text.encode()]})
            run.cells.init(text, text)
            run.kv.put(text, text)
        traces = [inmem.NewTrace(inmem.Thought("the root of it", 0.5), id="root", timestamp=1_000_000)]
        bodies: list[Any] = [inmem.Custom(text, {text: text}) for text in HOSTILE]
        bodies += [inmem.ToolCall(text, text, text, 5.0) for text in HOSTILE]
        bodies += [inmem.ErrorTrace(HOSTILE[0], HOSTILE[1], False), inmem.Decision("which?", [1, 2], 2)]
        bodies += [inmem.ToolCall("needle", {"in": "hay"}, None, 2000.0)]
        for number, body in enumerate(bodies):
            traces.append(inmem.NewTrace(body, id=f"t{number}", parent_id="root", tags=[HOSTILE[0]],
                                         metadata={"m": HOSTILE[1]}, timestamp=1_000_000 + number))
        above = "root"
        for number in range(TRACES - len(traces)):
            traces.append(inmem.NewTrace(inmem.Thought(f"level {number}"), id=f"d{number}", parent_id=above,
                                         timestamp=2_000_000 + 1000 * number))
            above = f"d{number}"
        run.traces.record_many(traces)
    stop_writer(store)
    file = place / "run.html"
    invoke("report", "hostile", "-d", store, "-o", file)
    return file


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("Chromium is not installed")
    with Browser(program) as one:
        one.open(page)
        yield one


class TestThePage:
    def test_it_is_one_file_that_names_no_other(self, page: Path) -> None:
        text = page.read_text()
        assert not re.search(r"(?:src|href|action|url)\s*[=(]\s*[\"']?(?:https?:|//|data:|file:)", text)
        assert "{{title}}" not in text and page.stat().st_mode & 0o777 == 0o600

    def test_its_data_can_not_end_the_element_that_it_is_in(self, page: Path) -> None:
        text = page.read_text()
        assert text.count("<script") == text.count("</script>") == 2 and text.count("<style") == 1
        data = text.split('id="data">', 1)[1].split("</script>", 1)[0]
        assert not set(data) & set("<>&") and data.isascii()
        assert json.loads(data)["run"] == "hostile"

    def test_a_limit_is_told(self, page: Path) -> None:
        store = page.parent / "store"
        file = page.parent / "few.html"
        invoke("report", "hostile", "-d", store, "-o", file, "--limit", "5")
        data = json.loads(file.read_text().split('id="data">', 1)[1].split("</script>", 1)[0])
        assert [len(data[kind]) for kind in ("events", "traces", "cells", "kv")] == [5, 5, 5, 5]
        assert "last 5 of 9" in data["left"]["events"] and "newest 5 of 1,000" in data["left"]["traces"]
        assert "first 5 of 9" in data["left"]["kv"]

    def test_it_can_go_to_standard_output(self, page: Path) -> None:
        shown = invoke("report", "hostile", "-d", page.parent / "store", "-o", "-").stdout
        assert shown.startswith("<!DOCTYPE html>") and shown.endswith("</html>\n")


class TestInABrowser:
    def test_it_loads_without_a_complaint_or_a_request(self, browser: Browser, page: Path) -> None:
        assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
        assert browser.messages == []
        assert browser.requests == [page.as_uri()]

    def test_nothing_that_was_stored_runs(self, browser: Browser) -> None:
        # Everything is put on the screen: each row's details too.
        browser.evaluate("document.querySelectorAll('.row').forEach(row => row.click())")
        browser.evaluate("new Promise(done => setTimeout(done, 100))")
        assert browser.evaluate("typeof window.pwned") == "undefined"
        assert browser.evaluate("document.title") == "hostile – inmem"
        assert browser.evaluate("document.querySelectorAll('img, svg, iframe, main script').length") == 0
        assert HOSTILE[0] in browser.evaluate("document.getElementById('events').textContent")
        assert browser.evaluate("getComputedStyle(document.body).display") == "block"
        shown = browser.evaluate("document.body.innerText")
        assert "\\u202e" in shown and not set("\u202e\u2066\x1b\u2028") & set(shown)
        browser.evaluate("document.querySelectorAll('.row').forEach(row => row.click())")
        assert browser.evaluate("document.querySelectorAll('.details').length") == 0
        assert browser.messages == []

    def test_the_policy_stops_what_would_run_anyway(self, browser: Browser) -> None:
        browser.evaluate(
            "(() => { const script = document.createElement('script');"
            " try { script.text = 'window.injected = 1'; document.head.append(script); } catch { }"
            " try { document.body.innerHTML = '<img src=x onerror=\"window.injected = 1\">'; } catch { } })()"
        )
        assert browser.evaluate("typeof window.injected") == "undefined"
        fetched = browser.evaluate("fetch('https://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        assert fetched == "refused" and not any("127.0.0.1" in url for url in browser.requests)
        browser.messages.clear()  # the browser has told of both

    def visible(self, browser: Browser, section: str = "traces") -> int:
        count = f"document.querySelectorAll('#{section} .row:not(.hidden)').length"
        return int(browser.evaluate(count))

    def test_the_tree_folds_and_unfolds(self, browser: Browser) -> None:
        assert self.visible(browser) == 1  # as many traces begin folded
        press = "document.querySelectorAll('#traces .head button')[{}].click()"
        browser.evaluate("document.querySelector('#traces .toggle').click()")
        unfolded = self.visible(browser)
        assert 1 < unfolded < 50
        browser.evaluate(press.format(0))
        assert self.visible(browser) == TRACES
        browser.evaluate("document.querySelector('#traces .toggle').click()")
        assert self.visible(browser) == 1
        browser.evaluate(press.format(1))

    def test_the_filter_finds_and_shows_the_way_there(self, browser: Browser) -> None:
        def filtered(text: str) -> str:
            browser.evaluate(
                f"(() => {{ const i = document.getElementById('filter'); i.value = {json.dumps(text)};"
                " i.dispatchEvent(new Event('input')); })()"
            )
            browser.evaluate("new Promise(done => setTimeout(done, 250))")
            return str(browser.evaluate("document.getElementById('found').textContent"))

        assert filtered("NEEDLE hay") == "1 row"
        assert self.visible(browser) == 2  # itself, and the root above it
        assert self.visible(browser, "events") == 0 and self.visible(browser, "timeline") == 1
        filtered("level 900")
        assert self.visible(browser) == 902
        assert filtered("nothing has this") == "0 rows"
        assert filtered("") == ""
        assert self.visible(browser, "events") == len(HOSTILE) and self.visible(browser) == 1
        assert browser.messages == []

    def test_a_thousand_traces_are_quick(self, browser: Browser, page: Path) -> None:
        browser.open(page)
        timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        assert browser.evaluate("document.querySelectorAll('#traces .row').length") == TRACES
        assert 0 < browser.evaluate(timing) < 10_000  # about 300 ms where nothing else runs


class TestScale:
    def test_order_is_kept_and_long_gaps_are_cut_short(self) -> None:
        scale = Scale([(0, 100), (50, 200), (10**12, 10**12 + 300)])
        places = [scale.place(us) for us in (0, 100, 200, 10**11, 10**12, 10**12 + 300)]
        assert places == sorted(places) and places[0] == 0.0 and places[-1] == pytest.approx(1.0)
        assert len(scale.gaps) == 1 and scale.place(200) > 0.35

    def test_ticks_name_the_moment_that_they_stand_at(self) -> None:
        scale = Scale([(0, 100), (10**9, 10**9 + 100)])
        assert all(scale.place(us) == pytest.approx(place, abs=0.01) for place, us in scale.ticks(5))

    def test_of_one_moment_or_none(self) -> None:
        assert Scale([(5, 5)]).place(5) == 0.0 and Scale([(5, 5)]).ticks(5) == [(0.0, 5)]
        assert Scale([]).ticks(5) == [] and Scale([]).place(7) == 0.0
