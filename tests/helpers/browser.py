"""A real browser for tests: headless Chromium, spoken to through a pipe.

It needs no package: messages of the DevTools protocol
(https://chromedevtools.github.io/devtools-protocol/) are JSON, ended by NUL,
on the descriptors 3 and 4 of the browser.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

WAIT_S = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """The program, None if there is none on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in one browser. Use it as a context manager."""

    def __init__(self, program: str, width: int = 1300, height: int = 1000) -> None:
        self._profile = tempfile.mkdtemp(prefix="browser-")
        to_read, self._write = _high_pipe(theirs_is_the_read_end=True)
        self._read, to_write = _high_pipe(theirs_is_the_read_end=False)
        arguments = [
            program, "--headless", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            f"--window-size={width},{height}", f"--user-data-dir={self._profile}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
        ]
        self._pid = os.posix_spawn(
            program, arguments, dict(os.environ) | {"HOME": self._profile},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, to_read, 3),
                (os.POSIX_SPAWN_DUP2, to_write, 4),
            ],
            setpgroup=0,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._number = 0
        self._session = ""
        self._happened: list[dict[str, Any]] = []
        self.messages: list[str] = []  # what the page, or the browser about it, has complained of
        self.requests: list[str] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **parameters: Any) -> Any:
        """One command, and what came of it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + WAIT_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method:
            self._happened.append(message)

    def open(self, path: Path) -> None:
        """Load a file, and wait until it is loaded."""
        self.visit(path.as_uri())

    def visit(self, url: str) -> None:
        """Load a page, and wait until it is loaded."""
        self._happened.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + WAIT_S
        while not any(message["method"] == "Page.loadEventFired" for message in self._happened):
            self._next(deadline)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """The size of the window, and whether its user wants light or dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, text: str = "") -> None:
        """One key, as a keyboard gives it."""
        named = {"Enter": ("\r", 13), "Escape": ("", 27), "ArrowDown": ("", 40), "End": ("", 35)}
        given, code = named.get(key, (text or key, ord(key[0].upper())))
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                **({"text": given} if given and kind == "keyDown" else {}),
            )

    def screenshot(self, file: Path) -> None:
        """What is on the screen, as a PNG file."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End it, with all its processes."""
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _high_pipe(*, theirs_is_the_read_end: bool) -> tuple[int, int]:
    """A pipe whose one end is out of the way of the descriptors that the browser wants."""
    ends = list(os.pipe())
    theirs = 0 if theirs_is_the_read_end else 1
    moved = fcntl.fcntl(ends[theirs], fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(ends[theirs])
    ends[theirs] = moved
    return ends[0], ends[1]
