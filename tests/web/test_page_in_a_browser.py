"""The page of `inmem ui` in a real browser, while a fleet works on the store.

With `INMEM_SCREENSHOTS=DIRECTORY` it writes the pictures of the docs there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from measured_page import measure
from page_server import PageServer
from support import wait_until
from unit.test_cli_report import HOSTILE

import inmem

pytest.importorskip("starlette", reason="the extra `ui` is not installed")
pytest.importorskip("uvicorn", reason="the extra `ui` is not installed")

EVENTS, TRACES, TREES = 100_000, 50_000, 100
FRAMES = 60
TABS = ("events", "traces", "kv", "cells", "leases", "queues")
PLACES = ("", *(f"run/trip-to-oslo?tab={tab}" for tab in TABS), "run/hostile?tab=traces")
SCROLL = """(async () => {
  const box = document.querySelector(".list");
  let most = 0;
  for (let step = 1; step <= FRAMES; step++) {
    box.scrollTop = box.scrollHeight * step / FRAMES;
    await new Promise(requestAnimationFrame);
    most = Math.max(most, document.querySelectorAll(".row").length);
  }
  return most;
})()"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("page")
    place.chmod(0o700)
    path = place / "store"
    with inmem.open(path) as db:
        db.runs.create_run(run_id="trip-to-oslo", tags=["demo"], metadata={"goal": "a cheap way to Oslo"})
        run = db.run("trip-to-oslo")
        root = run.traces.record(inmem.Thought("Which way to Oslo is the cheapest?", 0.7))
        for day in range(4):
            call = run.traces.record_child(
                root, inmem.ToolCall("search_trains", {"to": "Oslo", "day": day}, "7 trains", 40.0 + 80 * day)
            )
            run.traces.record_child(call, inmem.Query("vector", "night train", 7))
        run.traces.record_child(root, inmem.Decision("bus or train?", ["bus", "train"], "train", "cheaper"))
        run.events.append_many([("message", {"content": f"Offer {n} looks good"}) for n in range(30)])
        run.kv.put("plan/next", {"step": "book", "budget": 300})
        run.cells.init("phase", "searching")
        run.leases.acquire("owner", ttl_s=600, holder="planner")
        run.queues.put_many("work", [{"book": n} for n in range(5)])
        run.queues.claim("work", lease_s=600, worker="worker 1")

        db.runs.create_run(run_id="hostile", tags=HOSTILE, metadata={text: text for text in HOSTILE})
        bad = db.run("hostile")
        for text in HOSTILE:
            bad.events.append(text, {text: [text, text.encode()]})
            bad.cells.init(text, text)
            bad.kv.put(text, text)
            bad.traces.record(inmem.ToolCall(text, text, text, 5.0), tags=[text])
        db.runs.fail_run("hostile", " ".join(HOSTILE))

        big = db.run("big")
        for first in range(0, EVENTS, 5000):
            big.events.append_many([("step", {"n": n}) for n in range(first, first + 5000)])
        for tree in range(TREES):
            at = (tree + 1) * 1_000_000
            root = inmem.NewTrace(inmem.Thought(f"tree {tree}"), id=f"r{tree}", timestamp=at)
            big.traces.record_many([
                root,
                *(inmem.NewTrace(inmem.ToolCall("call", n, None, 5.0), id=f"t{tree}-{n}", parent_id=root.id,
                                 timestamp=at + n * 1000)
                  for n in range(1, TRACES // TREES)),
            ])  # fmt: skip
        yield path


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[PageServer]:
    with PageServer(store) as one:
        yield one


@pytest.fixture(scope="module")
def page(server: PageServer) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("Chromium is not installed")
    with Browser(program) as browser:
        browser.call("Performance.enable", timeDomain="threadTicks")
        browser.visit(server.link)
        yield browser


def shows(page: Browser, condition: str) -> Any:
    """Wait until an expression of the page is true."""
    expression = f"(() => {{ try {{ return {condition} }} catch {{ return false }} }})()"
    return wait_until(lambda: page.evaluate(expression), condition)


def rows(page: Browser) -> list[str]:
    """The text of each row that is laid out."""
    texts = "[...document.querySelectorAll('.list .row')].map((row) => row.innerText)"
    found: list[str] = page.evaluate(texts)
    return found


def complaints(page: Browser) -> list[str]:
    """What the page has complained of, but for that another program has changed the machine's network."""
    return [message for message in page.messages if "ERR_NETWORK_CHANGED" not in message]


def busy_s(page: Browser) -> float:
    """The time that the page's thread has had the processor, whatever else the machine does."""
    metrics = {each["name"]: each["value"] for each in page.call("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def growing(server: PageServer) -> str | None:
    """A run to whose log somebody appends."""
    runs = [run["id"] for run in server.get("runs", status="active")["runs"]]
    before = [server.get("events", run=run, limit=0)["count"] for run in runs]
    after = [server.get("events", run=run, limit=0)["count"] for run in runs]
    return next((run for run, a, b in zip(runs, before, after, strict=True) if b > a), None)


def picture(page: Browser, name: str) -> None:
    if place := os.environ.get("INMEM_SCREENSHOTS"):
        page.evaluate("document.getElementById('where').textContent = './data'")
        page.screenshot(Path(place) / f"{name}.png")


def test_the_link_leads_to_the_runs(page: Browser, server: PageServer) -> None:
    shows(page, "document.querySelectorAll('.run-row').length >= 2")
    assert page.evaluate("location.href") == f"{server.base}/"
    text = page.evaluate("document.body.innerText")
    assert "trip-to-oslo" in text and "hostile" in text and "big" in text  # never created, and named
    shows(page, "document.querySelectorAll('.card').length >= 8")
    shows(page, "document.getElementById('live').className === 'on'")


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1300, "dark"), (1920, "light")])
@pytest.mark.parametrize("place", PLACES)
def test_all_can_be_read(page: Browser, server: PageServer, place: str, width: int, scheme: str) -> None:
    page.resize(width, 900, scheme)
    page.visit(f"{server.base}/{place}")
    shows(page, "document.querySelectorAll('.row').length > 0")
    seen = measure(page)
    assert seen["texts"] > 8
    clipped = [each for each in seen["problems"] if not each.startswith("outside")]  # rows are cut, with …
    assert clipped == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_that_is_stored_runs(page: Browser, server: PageServer) -> None:
    page.resize(1300, 900)
    for tab in TABS[:4]:
        page.visit(f"{server.base}/run/hostile?tab={tab}")
        shows(page, f"document.querySelectorAll('.row').length === {len(HOSTILE)}")
        for index in range(len(HOSTILE)):
            row = f"document.querySelectorAll('.row')[{index}]"
            shows(page, f"({row}.click(), !document.getElementById('panel').hidden)")
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.querySelectorAll('body img, main script, #panel script').length") == 0
    assert complaints(page) == []


def test_nothing_is_loaded_from_elsewhere(page: Browser, server: PageServer) -> None:
    assert page.requests and all(url.startswith((f"{server.base}/", "about:")) for url in page.requests)


def test_what_is_committed_is_shown_at_once(page: Browser, server: PageServer, store: Path) -> None:
    with inmem.open(store) as db:
        run = db.run("trip-to-oslo")
        page.visit(f"{server.base}/run/trip-to-oslo?tab=events")
        shows(page, "document.querySelector('#tab-events span').textContent === '30'")
        shows(page, "document.querySelectorAll('.event').length > 5")
        run.events.append("booked", {"content": "two seats"})
        shows(page, "[...document.querySelectorAll('.event')].at(-1).innerText.includes('two seats')")
        page.visit(f"{server.base}/run/trip-to-oslo?tab=cells")
        shows(page, "document.querySelectorAll('.cell').length === 1")
        run.cells.set("phase", "booking")
        shows(page, "document.querySelector('.cell').innerText.includes('booking')")
        page.evaluate("document.querySelector('.cell').click()")
        shows(page, "document.getElementById('panel').innerText.includes('searching')")  # what it was before
        page.visit(f"{server.base}/run/trip-to-oslo?tab=queues")
        shows(page, "document.querySelectorAll('.job').length === 5")
        run.queues.put("work", {"book": 99})
        shows(page, "document.querySelectorAll('.job').length === 6")
        page.visit(f"{server.base}/run/trip-to-oslo?tab=leases")
        shows(page, "document.querySelector('.lease').innerText.includes('planner')")
        page.visit(f"{server.base}/run/trip-to-oslo?tab=traces")
        shows(page, "document.querySelectorAll('.tree').length > 5")
        run.traces.record(inmem.ToolCall("pay", {"seats": 2}, None, 5.0))
        shows(page, "[...document.querySelectorAll('.tree')].some((row) => row.innerText.includes('pay'))")
        page.visit(f"{server.base}/")
        shows(page, "document.querySelectorAll('.run-row').length >= 2")
        db.runs.create_run(run_id="just-now")
        shows(page, "document.querySelector('.run-row').innerText.includes('just-now')")
        page.visit(f"{server.base}/run/just-now")
        shows(page, "document.querySelector('.badge').textContent === 'active'")
        db.runs.complete_run("just-now")
        shows(page, "document.querySelector('.badge').textContent === 'completed'")
        db.runs.delete_run("just-now")
        shows(page, "document.querySelector('.failure').textContent.includes('deleted')")


def test_a_link_into_the_middle(page: Browser, server: PageServer) -> None:
    page.visit(f"{server.base}/run/big?tab=events&at=77777")
    shows(page, "document.querySelector('#panel h2').textContent === 'event 77,777, step'")
    shows(page, "document.querySelector('.row.chosen').innerText.includes('77,777')")
    page.visit(f"{server.base}/run/big?tab=traces&at=t42-17")
    shows(page, "document.querySelector('#panel').innerText.includes('t42-17')")
    shows(page, "document.querySelector('.row.chosen') !== null")


def test_keys_of_the_keyboard(page: Browser, server: PageServer) -> None:
    page.visit(f"{server.base}/")
    shows(page, "document.querySelectorAll('.run-row').length >= 2")
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    for letter in "oslo":
        page.press(letter)
    shows(page, "document.querySelectorAll('.run-row').length === 1 && location.search === '?words=oslo'")
    page.press("Escape")
    shows(page, "document.querySelectorAll('.run-row').length >= 2")
    page.visit(f"{server.base}/?words=oslo")
    shows(page, "document.querySelectorAll('.run-row').length === 1")
    page.press("j")
    page.press("Enter")
    shows(page, "location.pathname === '/run/trip-to-oslo' && document.querySelectorAll('.row').length > 5")
    page.press("2")
    shows(page, "location.search === '?tab=traces' && document.querySelectorAll('.tree').length > 5")
    page.press("j")
    page.press("Enter")
    shows(page, "!document.getElementById('panel').hidden")
    page.press("Escape")
    shows(page, "document.getElementById('panel').hidden")
    page.press("?")
    shows(page, "document.getElementById('help').open")
    page.press("Escape")
    page.press("h")
    shows(page, "location.pathname === '/' && document.querySelectorAll('.run-row').length >= 2")


def test_search_in_events_and_traces(page: Browser, server: PageServer) -> None:
    def look_for(words: str) -> None:
        page.evaluate(
            "(() => { const box = document.getElementById('filter'); box.value = " + json.dumps(words)
            + "; box.dispatchEvent(new Event('input')); })()"
        )

    page.visit(f"{server.base}/run/big?tab=events")
    shows(page, "document.querySelectorAll('.event').length > 5")
    look_for("n: 99999")
    shows(page, "document.querySelectorAll('.event').length === 1")
    assert "99,999" in rows(page)[0]
    page.visit(f"{server.base}/run/big?tab=traces")
    shows(page, "document.querySelectorAll('.tree').length > 5")
    look_for("tree 73")
    shows(page, "document.querySelector('.tree').innerText.includes('tree 73')")


@pytest.mark.parametrize("tab", ["events", "traces"])
def test_long_lists_scroll(page: Browser, server: PageServer, tab: str) -> None:
    page.visit(f"{server.base}/run/big?tab={tab}")
    shows(page, "document.querySelectorAll('.row').length > 5")
    if tab == "traces":
        shows(page, "document.querySelector('.list').scrollHeight >= 100 * 46")
        page.evaluate("document.querySelector('.bar-of-tools button').click()")  # expand all
        shows(page, f"document.querySelector('.list').scrollHeight >= {TRACES} * 46")
    else:
        shows(page, f"document.querySelector('.list').scrollHeight >= {EVENTS} * 40")
    before = busy_s(page)
    most = page.evaluate(SCROLL.replace("FRAMES", str(FRAMES)))
    frame_ms = 1000 * (busy_s(page) - before) / FRAMES
    print(f"{tab}: {most} rows in the document, {frame_ms:.1f} ms of the processor for each frame")
    assert most <= 120
    assert frame_ms < 16.7  # 60 frames a second, each with all rows made anew
    last = f"{EVENTS - 1:,}" if tab == "events" else "call"
    shows(page, f"[...document.querySelectorAll('.row')].at(-1).innerText.includes('{last}')")


SEEN = """(() => {
  Object.defineProperty(document, "hidden", { value: !SEEN, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
})()"""
SLOW = """(() => {
  const ask = window.fetch;
  window.fetch = async (url, options) => {
    const answer = await ask(url, options);
    if (url.startsWith("/api/" + "WHAT?")) await new Promise((resolve) => { window.answer = resolve; });
    return answer;
  };
})()"""


def test_a_page_that_nobody_sees_has_no_connection(
    page: Browser, server: PageServer, store: Path
) -> None:
    page.visit(f"{server.base}/run/trip-to-oslo?tab=kv")
    shows(page, "document.querySelectorAll('.kv').length === 1")
    before = connections(server)
    assert before >= 1
    page.evaluate(SEEN.replace("SEEN", "false"))
    wait_until(lambda: connections(server) < before, "the end of the stream")
    with inmem.open(store) as db:
        db.kv.put("trip-to-oslo", "unseen", 1)
        page.evaluate(SEEN.replace("SEEN", "true"))
        shows(page, "document.querySelectorAll('.kv').length === 2")
        db.kv.delete("trip-to-oslo", "unseen")
        shows(page, "document.querySelectorAll('.kv').length === 1")


def connections(server: PageServer) -> int:
    """Streams that the server has open: what it has sent since is kept from nobody."""
    here = f":{server.port:04X}"
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table]
    return sum(1 for line in lines if line[1].endswith(here) and line[3] == "01")


def test_an_answer_that_comes_late_changes_nothing(page: Browser, server: PageServer) -> None:
    page.visit(f"{server.base}/")
    shows(page, "document.querySelectorAll('.run-row').length >= 2")
    page.evaluate(SLOW.replace("WHAT", "run"))
    click = "[...document.querySelectorAll('.run-row')].find((row) => row.innerText.includes('trip')).click()"
    page.evaluate(click)
    shows(page, "location.pathname === '/run/trip-to-oslo' && Boolean(window.answer)")
    page.evaluate("history.back()")
    shows(page, "location.pathname === '/' && document.querySelectorAll('.run-row').length >= 2")
    page.evaluate("window.answer()")
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")  # it would be drawn by now
    assert page.evaluate("location.pathname") == "/"
    assert page.evaluate("document.querySelector('main [role=tablist]')") is None


def test_details_that_come_late_are_not_shown(page: Browser, server: PageServer) -> None:
    page.visit(f"{server.base}/run/trip-to-oslo?tab=events")
    shows(page, "document.querySelectorAll('.event').length > 5")
    page.evaluate(SLOW.replace("WHAT", "event"))
    page.evaluate("document.querySelectorAll('.event')[3].click()")
    shows(page, "Boolean(window.answer)")
    page.evaluate("document.getElementById('tab-kv').click()")
    shows(page, "document.querySelectorAll('.kv').length === 1")
    page.evaluate("window.answer()")
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    assert page.evaluate("document.getElementById('panel').hidden && location.search === '?tab=kv'")


@pytest.mark.parametrize("place", ["run/100%25", "run/100%", "run/%ff", "run/a/b", "run/", "run/none"])
def test_a_link_to_no_run_says_so(page: Browser, server: PageServer, place: str) -> None:
    page.visit(f"{server.base}/{place}")
    shows(page, "document.querySelector('main .failure').textContent.length > 5")
    assert [message for message in page.messages if "status of 40" not in message] == []
    page.messages.clear()


def test_a_search_while_the_list_moves(page: Browser, server: PageServer, store: Path) -> None:
    with inmem.open(store) as db:
        db.run("many").kv.put_many({f"key/{n:04}": n for n in range(1000)})
        page.messages.clear()
        page.visit(f"{server.base}/run/many?tab=kv")
        shows(page, "document.querySelectorAll('.kv').length > 5")
        page.evaluate(SLOW.replace("WHAT", "kv"))
        page.evaluate(
            "(() => { const box = document.getElementById('filter'); box.value = 'key/09';"
            " box.dispatchEvent(new Event('input')); })()"
        )
        shows(page, "Boolean(window.answer)")
        page.evaluate("document.querySelector('.list').scrollTop = 5000")
        page.evaluate("new Promise(requestAnimationFrame)")
        page.evaluate("setInterval(() => window.answer(), 20)")
        shows(page, "document.querySelector('.list').scrollHeight === 3600")
        assert complaints(page) == []
        db.runs.delete_run("many")


def test_a_time_to_live_is_seen_to_run_out(page: Browser, server: PageServer, store: Path) -> None:
    with inmem.open(store) as db:
        page.visit(f"{server.base}/run/trip-to-oslo?tab=kv")
        db.kv.put("trip-to-oslo", "brief", 1, ttl=4)
        shows(page, "[...document.querySelectorAll('.kv')].some((row) => row.innerText.includes('for 1.'))")
        shows(page, "![...document.querySelectorAll('.kv')].some((row) => row.innerText.includes('brief'))")


def test_a_value_is_edited_as_it_is(page: Browser, store: Path) -> None:
    with inmem.open(store) as db, PageServer(store, "--write") as server:
        db.kv.put("trip-to-oslo", "text", "123")
        page.visit(server.link.replace("/?", "/run/trip-to-oslo?"))
        shows(page, "(document.getElementById('tab-kv').click(), true)")
        row = "[...document.querySelectorAll('.kv')].find((row) => row.innerText.includes('text'))"
        shows(page, f"Boolean({row})")
        page.evaluate(f"{row}.click()")
        area = "document.querySelector('#panel textarea')"
        assert shows(page, f"{area}.value") == '"123"'
        page.evaluate(f"{area}.focus()")
        page.press("Escape")
        assert page.evaluate(f"{area}.value") == '"123"'  # what was written is not lost
        put = "document.querySelector('#panel .edit button').click()"
        said = "document.querySelector('#panel .note').textContent"
        page.evaluate(put)
        shows(page, f"{said} === 'done'")
        assert db.kv.get("trip-to-oslo", "text") == "123"
        db.kv.put("trip-to-oslo", "text", "of another")
        page.evaluate(put)
        shows(page, f"{said}.includes('has changed')")
        assert db.kv.get("trip-to-oslo", "text") == "of another"
        db.kv.delete("trip-to-oslo", "text")
        page.visit("about:blank")  # before its server ends
        assert [message for message in page.messages if "409" not in message] == []
        page.messages.clear()


@pytest.mark.parametrize(
    ("us", "text"),
    [(999, "999 µs"), (999.7, "1.00 ms"), (999_700, "1.00 s"), (59_990_000, "1 min 0 s"),
     (119_700_000, "2 min 0 s"), (3_599_900_000, "1 h 0 min"), (7_199_000_000, "1 h 59 min")],
)  # fmt: skip
def test_times_as_people_read_them(page: Browser, server: PageServer, us: float, text: str) -> None:
    page.visit(f"{server.base}/")
    module = "import('/assets/words.js')"
    assert page.evaluate(f"{module}.then((words) => words.lasted({us}))") == text


def test_a_fleet_at_work_is_watched(page: Browser, server: PageServer, store: Path) -> None:
    with inmem.open(store) as db:  # the rest is for the eye
        db.runs.delete_run("hostile")
        db.runs.delete_run("big")
    page.resize(1300, 720)
    page.visit(f"{server.base}/")
    shows(page, "document.querySelectorAll('.run-row').length === 1")
    options = ["--path", str(store), "--workers", "3", "--steps", "250", "-q"]
    command = [sys.executable, "-m", "workers", "fleet", *options]
    fleet = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        shows(page, "document.querySelectorAll('.run-row .badge.active').length >= 4")
        shows(page, "Number(document.querySelector('.card b').textContent.replace(/\\D/g, '')) > 20")
        picture(page, "ui-runs")
        busy = wait_until(lambda: growing(server), "a run that grows")
        page.visit(f"{server.base}/run/{busy}?tab=events")
        shows(page, "document.querySelectorAll('[role=tab]').length === 6")
        shown = "Number(document.querySelector('#tab-events span').textContent.replace(/\\D/g, ''))"
        first = page.evaluate(shown)
        shows(page, f"{shown} > {first}")
    finally:
        said, _ = fleet.communicate(timeout=90)
    assert fleet.returncode == 0, said
    page.visit(f"{server.base}/run/trip-to-oslo?tab=traces")
    shows(page, "document.querySelectorAll('.tree').length > 5")
    page.evaluate("document.querySelectorAll('.tree')[1].click()")
    shows(page, "!document.getElementById('panel').hidden")
    picture(page, "ui-traces")
    page.resize(1300, 720, "dark")
    page.visit(f"{server.base}/run/trip-to-oslo?tab=queues")
    shows(page, "document.querySelectorAll('.job').length >= 5")
    picture(page, "ui-queues")
    assert complaints(page) == []
