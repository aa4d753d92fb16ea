"""`inmem ui` as a process, and what it answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

WAIT_S = 30.0
MAIN = "from inmem.cli import main; main()"


class PageServer:
    """One server over a store. Use it as a context manager."""

    def __init__(self, place: Any, *options: str) -> None:
        command = [sys.executable, "-c", MAIN, "ui", "--json", "-d", str(place), *options]
        environment = {**os.environ, "TZ": "UTC"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        assert lines, self.process.communicate()
        self.link: str = json.loads("".join(lines))["link"]
        found = urlsplit(self.link)
        assert found.port is not None
        self.port = found.port
        self.base = f"http://127.0.0.1:{self.port}"
        self.token = found.query.removeprefix("token=")
        self.cookie = f"inmem-ui-{self.port}={self.token}"

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """End it as Ctrl-C does; what it ended with."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=WAIT_S)
        assert "Traceback" not in errors, errors
        return self.process.returncode

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None,
        headers: dict[str, str] | None = None, has_cookie: bool = True,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request, with what a browser that came by the link sends. None takes a header away."""
        sent = {"Cookie": self.cookie} if has_cookie else {}
        if method == "POST":
            sent["Origin"] = self.base
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def get(self, name: str, **query: Any) -> Any:
        """A document; it has to be there."""
        status, _, body = self.ask(f"/api/{name}?{urlencode(query)}")
        assert status == 200, (status, body)
        return json.loads(body)

    def do(self, **what: Any) -> tuple[int, Any]:
        """Ask for a change."""
        status, _, body = self.ask("/api/do", method="POST", body=json.dumps(what).encode())
        return status, json.loads(body)

    def told(self, run: str | None = None) -> Iterator[tuple[str, Any]]:
        """What the stream tells: names and documents, but for what the writer says of itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            query = "" if run is None else f"?{urlencode({'run': run})}"
            connection.request("GET", f"/api/stream{query}", headers={"Cookie": self.cookie})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            name = ""
            for raw in answer:
                line = raw.decode().rstrip("\n")
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and name != "status":
                    yield name, json.loads(line[6:])
        finally:
            connection.close()
