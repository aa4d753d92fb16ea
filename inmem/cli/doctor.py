"""`inmem doctor`: will it work here, and is this store well? It changes nothing, and starts no writer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from inmem.cli.common import FAILED, Where, command, console, print_fields, print_json, size
from inmem.cli.life import Timeout, status_of
from inmem.cli.text import plain, span
from inmem.config import Settings
from inmem.engines.opening import needing_psycopg
from inmem.maintenance.condition import judge_status, look_at_directory, look_at_journal
from inmem.maintenance.diagnosis import Diagnosis
from inmem.maintenance.machine import judge_room, look_at_machine


@command(old="none")
def doctor(where: Where, timeout: Timeout = 5.0) -> None:
    """Will a store work on this machine, or this server, and is this one well? What to do, if not.

    Without a data directory or URL it is about the machine alone. It reads no data:
    for that there is `inmem check`. The exit code is 0 if nothing will hurt,
    else 1.

    Example: inmem doctor -d ./data
    """
    diagnosis = Diagnosis()
    # Memory and limits of this machine are of no concern to a store on a server.
    machine = look_at_machine(Diagnosis() if where.is_server else diagnosis)
    store = server = None
    if where.is_server:
        with diagnosis.looking_at("server"):
            server = _look_at_server(where, diagnosis, timeout)
    elif where.given is None:
        memory = machine["memory"]
        judge_room(diagnosis, memory["path"], memory["free_bytes"], Settings().quota_bytes)
    else:
        store = _look_at_store(diagnosis, where, timeout)
    if where.as_json:
        print_json({
            "ok": diagnosis.is_well, "machine": machine, "directory": store, "server": server,
            "findings": [asdict(symptom) for symptom in diagnosis.symptoms],
        })
    else:
        _print(diagnosis, machine, store, server)
    if not diagnosis.is_well:
        raise typer.Exit(FAILED)


def _look_at_store(diagnosis: Diagnosis, where: Where, timeout_s: float) -> dict[str, Any] | None:
    """What is known of the directory and its writer; None if it is no database."""
    with diagnosis.looking_at("directory"):
        directory = where.directory()
        identity = directory.identity()
        found = look_at_directory(diagnosis, directory, identity)
        found |= {"status": None, "journal": []}
        with diagnosis.looking_at("writer"):
            status = status_of(directory, timeout_s)
            judge_status(diagnosis, directory, identity, status)
            found["status"] = status
            found["journal"] = look_at_journal(diagnosis, directory, is_served=status["serving"])
        return found
    return None


def _look_at_server(where: Where, diagnosis: Diagnosis, timeout_s: float) -> dict[str, Any] | None:
    """What is known of a server and of the store on it; None if it cannot be asked."""
    with needing_psycopg():
        from inmem.engines.postgres.condition import look_at_server
    return look_at_server(diagnosis, where.named, timeout_s)


def _print(
    diagnosis: Diagnosis, machine: dict[str, Any], store: dict[str, Any] | None,
    server: dict[str, Any] | None,
) -> None:
    memory, files, writer = machine["memory"], machine["open_files"], machine["writer"] or {}
    packages = ", ".join(f"{name} {number or 'missing'}" for name, number in machine["packages"].items())
    fields = {
        "inmem": f"{machine['inmem']}, format {machine['format']}",
        "python": f"{machine['python']}, {machine['program']}",
        "platform": f"{machine['platform']}, {machine['cpus']} cores",
        "packages": packages,
        "writer's program": f"{writer.get('program', 'none')}: LMDB {writer.get('lmdb', 'missing')}, "
        f"ZeroMQ {writer.get('zmq', 'missing')}",
        "memory": f"{memory['path']} ({memory['filesystem']}): {size(memory['free_bytes'])} free of "
        f"{size(memory['bytes'])}",
        "open files": f"{files['open']}, at most {files['soft'] or 'any number'} "
        f"(a writer: {files['hard'] or 'any number'})",
    }
    if store is not None:
        fields |= _store_fields(store)
    if server is not None:
        fields |= _server_fields(server)
    print_fields({name: plain(text) for name, text in fields.items()})
    out = console()
    for symptom in sorted(diagnosis.symptoms, key=lambda one: one.is_problem):
        kind = "problem" if symptom.is_problem else "note"
        hint = symptom.hint.rstrip(".")
        out.print(plain(f"{kind}: {symptom.about}: {symptom.text}. {hint}."), soft_wrap=True)
    count = sum(symptom.is_problem for symptom in diagnosis.symptoms)
    out.print(f"{count:,} problems" if count else "nothing that will hurt was found")


def _store_fields(store: dict[str, Any]) -> dict[str, str]:
    status, checkpoint = store["status"], store["checkpoint"]
    fields = {
        "directory": f"{store['path']} ({store['filesystem'] or 'unknown file system'}): "
        f"{size(store['free_bytes'])} free of {size(store['bytes'])}, format {store['format']}",
        "checkpoint": "none" if checkpoint is None else f"version {checkpoint['version']:,}, "
        f"{size(checkpoint['bytes'])}, {span(checkpoint['age_s'])} old",
    }
    if status is not None:
        fields["writer"] = f"process {status['writer_pid']}" if status["serving"] else "none"
        fields["version"] = f"{status['version']:,}, durable up to {status['durable_version']:,}"
        fields["durability"] = status["durability"]
        fields["log"] = size(status["wal_bytes"])
        if status["serving"]:
            fields["image"] = f"{size(status['image_bytes'])} of {size(status['quota_bytes'])}"
    for number, line in enumerate(store["journal"]):
        fields[f"journal {number + 1}"] = line
    return fields


def _server_fields(server: dict[str, Any]) -> dict[str, str]:
    settings, store = server["settings"], server["store"]
    fields = {
        "server": f"{server['url']}: PostgreSQL {server['version']}, user {server['user']}",
        "connections": f"{server['connections']} of {settings['max_connections']} are in use",
        "commits wait for": f"fsync {settings['fsync']}, "
        f"synchronous_commit {settings['synchronous_commit']}, "
        f"{server['synchronous_standbys']} synchronous standbys",
        "clock": f"{server['clock_ahead_s']:+,.3f} s",
    }
    if store is not None:
        fields["store"] = f"format {store['format']}, durability {store['durability']}, " + (
            "may be written to" if store["may_write"] else "can only be read"
        )
    return fields
