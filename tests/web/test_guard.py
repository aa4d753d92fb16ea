"""Who may ask the page of `inmem ui`: a browser that came by its link, from this page alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from page_server import PageServer
from support import wait_until

import inmem
from inmem.web.guard import Guard, Message, Receive, Send

pytest.importorskip("starlette", reason="the extra `ui` is not installed")
pytest.importorskip("uvicorn", reason="the extra `ui` is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with inmem.open() as db:
        db.runs.create_run(run_id="trip")
        with PageServer(db.path) as one:
            yield one


def test_the_link_gives_a_cookie_and_takes_the_token_out_of_the_address(server: PageServer) -> None:
    status, headers, _ = server.ask(f"/run/trip?token={server.token}", has_cookie=False)
    assert (status, headers["location"]) == (303, "/run/trip")
    cookie = headers["set-cookie"]
    assert cookie.startswith(server.cookie) and "HttpOnly" in cookie and "SameSite=Strict" in cookie


def test_the_way_after_the_link_is_always_one_of_this_page(server: PageServer) -> None:
    status, headers, _ = server.ask(f"//elsewhere.example/?token={server.token}", has_cookie=False)
    assert (status, headers["location"]) == (303, "/elsewhere.example/")
    status, headers, _ = server.ask(f"/\\elsewhere.example/?token={server.token}", has_cookie=False)
    assert (status, headers["location"]) == (303, "/elsewhere.example/")


@pytest.mark.parametrize("other", ['a={"x": 1}', "a=b c", "alone", "=", "a=é", "inmem-ui-PORT=old", 'a="'])
def test_cookies_of_other_programs_are_no_matter(server: PageServer, other: str) -> None:
    sent = f"{other.replace('PORT', str(server.port))}; {server.cookie}"
    assert server.ask("/api/store", headers={"Cookie": sent})[0] == 200


def test_the_link_that_a_browser_is_started_with_works_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with inmem.open() as db:
        browser = tmp_path / "browser"
        browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/link\n')
        browser.chmod(0o700)
        link = tmp_path / "link"
        monkeypatch.setenv("BROWSER", str(browser))
        with PageServer(db.path, "--open") as server:
            given = wait_until(lambda: link.exists() and link.read_text(), "the start of a browser")
            once = given.strip().partition("token=")[2]
            assert once and once != server.token
            for token, status in [(once, 303), (once, 403), (server.token, 303)]:
                assert server.ask(f"/?token={token}", has_cookie=False)[0] == status


def test_the_port_that_browsers_do_not_name() -> None:
    statuses = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing has a body")

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    for host in (b"127.0.0.1", b"127.0.0.1:80", b"localhost", b"evil.example"):
        headers = [(b"host", host), (b"cookie", b"inmem-ui-80=t")]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
        asyncio.run(Guard(app, "t", 80)(scope, receive, send))
    assert [status for status in statuses if status] == [200, 403, 200, 403]


@pytest.mark.parametrize("path", ["/", "/api/store", "/api/stream", "/assets/app.js", "/run/trip"])
@pytest.mark.parametrize("cookie", ["", "inmem-ui-PORT=wrong", "inmem-ui-PORT=", "a=TOKEN", "\x01;;=="])
def test_nothing_is_shown_without_the_token(server: PageServer, path: str, cookie: str) -> None:
    sent = cookie.replace("PORT", str(server.port)).replace("TOKEN", server.token)
    status, _, body = server.ask(path, headers={"Cookie": sent})
    assert status == 403 and b"token" in body and b"trip" not in body


@pytest.mark.parametrize("token", ["x", "", "é", "a" * 5000])
def test_another_token_is_refused(server: PageServer, token: str) -> None:
    assert server.ask(f"/?token={quote(token)}", has_cookie=False)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "evil.example:PORT", "[::1]:PORT"])
def test_other_names_of_the_host_are_refused(server: PageServer, host: str) -> None:
    status, _, body = server.ask("/api/store", headers={"Host": host.replace("PORT", str(server.port))})
    assert status == 403 and b"answers to" in body


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_requests_of_other_sites_are_refused(server: PageServer, headers: dict[str, str]) -> None:
    assert server.ask("/api/store", headers=headers)[0] == 403
    assert server.ask("/api/do", method="POST", body=b"{}", headers=headers)[0] == 403


def test_a_change_needs_the_origin_of_the_page(server: PageServer) -> None:
    status, _, body = server.ask("/api/do", method="POST", body=b"{}", headers={"Origin": ""})
    assert status == 403 and b"Origin" in body


@pytest.mark.parametrize("path", ["/", "/api/store", "/assets/app.js", "/nothing", "/api/run?run=none"])
def test_every_answer_has_the_policy(server: PageServer, path: str) -> None:
    _, headers, _ = server.ask(path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_it_listens_on_this_machine_alone(server: PageServer) -> None:
    with open("/proc/net/tcp") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    port = f":{server.port:04X}"
    assert [each for each in listening if each.endswith(port)] == [f"0100007F{port}"]
