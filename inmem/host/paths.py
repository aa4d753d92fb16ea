"""The path that somebody gives for a data directory: what it cannot have been meant as."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from inmem.errors import InvalidInputError
from inmem.host.interrupts import let_through

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL_AS_PATH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib leaves one slash of two
_OPAQUE_URL: Final = re.compile(r"(file|sqlite|memory):", re.IGNORECASE)
_CONNINFO: Final = re.compile(r"\s*(?:host|hostaddr|port|dbname|user|password|passfile|service|sslmode)\s*=")
_DRIVE: Final = re.compile(r"[A-Za-z]:\\")
_VARIABLE: Final = re.compile(r"(?:^|/)\$(?:[A-Za-z_]|\{)|\$\{|%[A-Za-z_]+%")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


GO_ELSEWHERE: Final = "Change to a directory that is there, and give whole paths."


def has_working_directory() -> bool:
    """Whether the directory that relative paths begin at is there still."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def check_path(path: object, argument: str = "path") -> str:
    """The path as a `str`.

    What the operating system would take, and nobody can have meant, is
    refused: it would be a new, empty store in a place where nobody looks.

    Raises:
        InvalidInputError: not a path; relative, and the working directory is gone; a URL, with `~` or a
            variable that nobody has expanded, with spaces or quotes around it, or with a control character.
    """
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise InvalidInputError(
            f"{argument} must be a str or a path, not {type(path).__name__}", argument=argument
        )
    if not name or "\0" in name:
        raise InvalidInputError(f"{argument} must not be empty, nor have NUL in it", argument=argument)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"{argument} has a character that no file name can have", argument=argument
        ) from None
    try:
        os.lstat(name)
    except OSError as error:
        let_through(error)
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidInputError(
                f"{argument} is too long for this system, or a name in it is: {len(os.fsencode(name))} bytes",
                argument=argument, hint="Name a shorter path.",
            ) from None
    for what, hint in _doubts(name):
        raise InvalidInputError(f"{argument} {what}", argument=argument, hint=hint)
    absolute(name, argument)
    return name


def absolute(path: str | Path, argument: str = "path") -> Path:
    """The whole path.

    Raises:
        InvalidInputError: it is relative, and the working directory was removed.
    """
    if not os.path.isabs(path) and not has_working_directory():
        raise InvalidInputError(
            f"{argument} is relative, and the working directory was removed", argument=argument,
            hint=GO_ELSEWHERE,
        )
    return Path(os.path.abspath(path))


def _doubts(name: str) -> list[tuple[str, str]]:
    """What is wrong with a path, and what to do. A URL is not shown: it may have a password."""
    shown = ascii(name) if "://" not in name else "a URL"
    url = _URL.match(name) or _OPAQUE_URL.match(name)
    as_path = _URL_AS_PATH.match(name)
    if not url and as_path and not os.path.isdir(name[: as_path.end()]):
        url = as_path
    if url:
        hint = "A store is a directory of this machine: give its path."
        if url[1].lower() == "file":
            hint = "Give the path alone, without file://."
        elif url[1].lower() == "memory":
            hint = "inmem.open() without a path is a store that goes when it is closed."
        return [(f"is a URL ({url[1]}:), and no engine here serves such", hint)]
    if _CONNINFO.match(name):
        return [("is a connection string of libpq", "Give it as a URL: postgresql://user@host:5432/database;"
                 " or ./ for a directory whose name begins so.")]  # fmt: skip
    if name == ":memory:":
        return [("is :memory:", "inmem.open() without a path is a store that goes when it is closed.")]
    if _CONTROL.search(name):
        return [(f"has a control character in it: {shown}", "See where it comes from: a line end, perhaps.")]
    if name != name.strip():
        return [(f"begins or ends with a space: {shown}", "Strip it.")]
    if name[0] == name[-1] and name[0] in "\"'":
        return [(f"has quotes around it: {shown}", "Strip them: they are for a shell.")]
    if name[0] == "~" or "~" in name.split("/"):
        return [(f"begins with ~ that is not expanded: {shown}",
                 "Use os.path.expanduser, or ./~ for a name that begins so.")]  # fmt: skip
    if _VARIABLE.search(name):
        return [(f"has a variable that is not expanded: {shown}", "Use os.path.expandvars.")]
    if _DRIVE.match(name):
        return [(f"is a path of Windows: {shown}", "Give the path as this system sees it.")]
    return []


def check_parent(path: Path) -> None:
    """Refuse a path for a new directory in one that is not there: that is more often a typo than a wish.

    Raises:
        InvalidInputError: names the first directory that is missing, or what is in its place.
    """
    parent = path.parent
    if parent.is_dir():
        return
    missing = parent
    while not os.path.lexists(missing.parent):
        missing = missing.parent
    if os.path.lexists(missing):
        raise InvalidInputError(f"{path} cannot be made: {missing} is no directory", argument="path")
    raise InvalidInputError(
        f"{path} is not there, and cannot be made: there is no directory {missing}", argument="path",
        hint=f"Correct the path, or make what it lies in: mkdir -p {parent}",
    )
