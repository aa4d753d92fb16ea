"""`inmem config`: the settings of a database, and the few that can be changed later.

Invariant: stored settings change only while no writer has the directory and
none can be started, and the file with them is replaced whole.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from inmem.cli.common import Command, Where, command, console, print_json
from inmem.cli.life import Timeout
from inmem.cli.text import plain
from inmem.client.launcher import under_launch_lock
from inmem.config import STORED, Settings, check_stored, load
from inmem.errors import BusyError, ConfigMismatchError, InvalidInputError
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock, write_durably
from inmem.writer.watch import living_writer

_ON_SERVER: Final = "Its settings are those of the server, and of each program. See: inmem status"
_POLL_S: Final = 0.003
_FIELDS: Final = {field.name: field for field in fields(Settings)}

# Why a stored setting cannot be changed here; what is not named is fixed for the reason of `_FIXED`.
_FIXED: Final = "it is fixed when a database is created, and the programs that use this one rely on it"
_REASONS: Final = {
    "chain": "each event log keeps the hash that it began with",
    "image_dir": "the image of a writer that was killed is looked for where it was",
}
_CHANGEABLE: Final = frozenset({"durability", "log_level", "slow_commit_ms"})


class _ShowByDefault(TyperGroup):
    """`inmem config` is `inmem config show`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As its base does, with the name of the command put in where none is."""
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["show", *args]
        return super().parse_args(ctx, args)


config = typer.Typer(
    cls=_ShowByDefault,
    help="Show the settings of a database (inmem config), or change one of the few that can be changed.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@config.command(cls=Command)
@command(only_here=_ON_SERVER)
def show(
    where: Where,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A TOML file with settings.")
    ] = None,
) -> None:
    """The settings that a program has which opens this database from here, and where each comes from.

    Stored ones hold for everybody. A variable or a file that asks for another
    value than the stored one makes `inmem.open` fail, and is named.

    Example: inmem config -d ./data
    """
    directory = where.directory()
    stored = directory.identity().stored
    asked = load(file)
    rows = []
    for name, field in _FIELDS.items():
        wish = getattr(asked.settings, name)
        is_stored = name in stored
        origin = asked.origins[name]
        rows.append({
            "name": name,
            "value": stored[name] if is_stored else wish,
            "origin": "stored" if is_stored else origin,
            "section": field.metadata["section"],
            "default": field.default,
            "reason": field.metadata["reason"],
            "refused": f"{origin} asks for {wish!r}"
            if is_stored and origin != "default" and wish != stored[name] else None,
        })
    if where.as_json:
        print_json({"path": str(directory.path), "settings": rows})
        return
    out = console()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for heading in ("SETTING", "VALUE", "FROM", "WHAT IT DECIDES"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "SETTING")
    for row in rows:
        changed = "bold" if row["value"] != row["default"] else ""
        table.add_row(
            Text(row["name"]), Text(_shown(row["value"]), changed), Text(plain(row["origin"]), "cyan"),
            Text(row["reason"], "dim"),
        )
    out.print(table)
    for row in rows:
        if row["refused"]:
            line = f"{row['name']}: {plain(row['refused'])}; opening with that is refused"
            out.print(line, style="red", soft_wrap=True)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return plain(value) or "(empty)"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


@config.command("set", cls=Command)
@command(only_here=_ON_SERVER)
def set_(
    where: Where,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The setting.", show_default=False)],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its new value.", show_default=False)],
    timeout: Timeout = 10.0,
) -> None:
    """Change a stored setting, while no writer serves.

    These can be changed: durability, from buffered to sync and back;
    log_level; slow_commit_ms. Of others it says why not.

    Programs that have the database open keep the old setting in mind until
    they open it anew.

    Example: inmem config set durability sync -d ./data
    """
    directory = where.directory()
    old, new = change(directory, name, value, time.monotonic() + timeout)
    if where.as_json:
        print_json({"path": str(directory.path), "name": name, "old": old, "value": new})
    else:
        console().print(f"{name} is {_shown(new)}, it was {_shown(old)}", soft_wrap=True)


def change(directory: DataDirectory, name: str, text: str, deadline: float) -> tuple[Any, Any]:
    """Store another value of a setting; the old and the new one.

    Raises:
        InvalidInputError: there is no such setting, or no such value of it.
        ConfigMismatchError: it cannot be changed.
        BusyError: a writer has the directory.
    """
    stored = directory.check_own().stored
    new = _allowed(name, text, stored)
    directory.take_over()

    def store() -> Any:
        lock = FileLock(directory.writer_lock)
        try:
            while not lock.try_exclusive():
                if time.monotonic() >= deadline or not lock.try_shared():
                    raise _busy(directory)
                lock.release()  # only somebody who looks whether there is a writer
                time.sleep(_POLL_S)
            control = directory.control()
            try:
                if living_writer(directory, control) is not None:  # whose lock file was removed
                    raise _busy(directory)
            finally:
                control.close()
            document = json.loads(directory.settings_file.read_bytes())
            old = directory.identity().stored[name]  # as it is now, under the locks
            document["settings"][name] = new
            check_stored(document["settings"], str(directory.settings_file))
            write_durably(directory.settings_file, json.dumps(document, indent=2).encode() + b"\n")
        finally:
            lock.close()
        return old

    return under_launch_lock(directory, deadline, store), new


def _busy(directory: DataDirectory) -> BusyError:
    return BusyError(
        f"a writer has {directory.path}, and works by the settings that it began with", what="writer",
        hint=f"Let it leave first: inmem stop -d {shlex.quote(str(directory.path))}",
    )


def _allowed(name: str, text: str, stored: Any) -> Any:
    """The value to store."""
    if name not in _FIELDS:
        raise InvalidInputError(
            f"there is no setting {name[:80]!r}", argument="name", hint="See them all: inmem config"
        )
    if name not in STORED:
        raise ConfigMismatchError(
            f"{name} is not stored: each program has its own", setting=name, requested=text,
            hint=f"Set INMEM_{name.upper()}, or name it in the file that inmem.open is given.",
        )
    new = getattr(load(environ={f"INMEM_{name.upper()}": text}).settings, name)
    old = stored[name]
    reason = None if name in _CHANGEABLE else _REASONS.get(name, _FIXED)
    if name == "durability" and "memory" in (old, new) and old != new:
        reason = "a database in memory has no log, and one with a log needs it from its first commit on"
    if reason is not None:
        raise ConfigMismatchError(
            f"{name} cannot be changed: {reason}", setting=name, stored=old, requested=new,
            hint="Create another database with it, and export this one into it.",
        )
    return new
