"""Something happens at one line of the code under test, and the next time one line later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any


def at_every_line(
    files: Collection[str], call: Callable[[], Any], happens: Callable[[int], Any], *, step: int = 1
) -> int:
    """Make a call again and again; `happens(n)` at the n-th line of the files in the n-th of them.

    With a `step` it happens so many lines further each time. What `happens`
    raises is raised at that line.

    Gives the line asked for in the last call, which had fewer.
    """
    lines = 0
    while True:
        lines += step
        left = lines

        def tracer(frame: Any, event: str, argument: Any, lines: int = lines) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in files:
                return tracer if event == "call" else None
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    happens(lines)
            return tracer

        previous = sys.gettrace()
        sys.settrace(tracer)
        try:
            call()
        finally:
            sys.settrace(previous)
        if left > 0:
            return lines
