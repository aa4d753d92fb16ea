"""Three nodes of PostgreSQL under Patroni, with etcd, on this machine: they fail over by themselves.

Where the tests run as root each node has a network namespace of its own, with
an address on a bridge, so that it can be cut off: see ip-netns(8).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from postgres_server import binaries, unprivileged
from support import alive, wait_until

NODES = ("a", "b", "c")

_NODE = """
scope: tests
name: {name}
restapi: {{listen: '{host}:{rest}', connect_address: '{host}:{rest}'}}
etcd3: {{host: '{etcd}'}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 1
    retry_timeout: 3
    maximum_lag_on_failover: 33554432
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters: {{wal_retrieve_retry_interval: 100ms, max_connections: 200, wal_keep_size: 256MB}}
  initdb: [{{encoding: UTF8}}, data-checksums, {{auth: trust}}]
  pg_hba: &hba
    - host all all {net} trust
    - host replication all {net} trust
    - local all all trust
postgresql:
  listen: '{host}:{port}'
  connect_address: '{host}:{port}'
  data_dir: {place}/{name}/data
  bin_dir: {programs}
  pgpass: {place}/{name}/pgpass
  parameters: {{unix_socket_directories: '{place}/{name}', dynamic_shared_memory_type: mmap}}
  pg_hba: *hba
  authentication:
    superuser: {{username: postgres}}
    replication: {{username: postgres}}
    rewind: {{username: postgres}}
"""


def missing() -> str:
    """What is not installed; empty if all is."""
    names = [name for name in ("patroni", "etcd") if shutil.which(name) is None]
    return ", ".join([*names, *([] if binaries() else ["postgresql"])])


class Cluster:
    """See above."""

    def __init__(self) -> None:
        programs, self._user = binaries(), unprivileged()
        assert programs is not None
        self.place = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))
        self.place.chmod(0o755)
        self._bridge = f"im{os.getpid() % 10_000}"
        self.can_cut = os.geteuid() == 0 and all(shutil.which(name) for name in ("ip", "setpriv"))
        self._net = f"10.79.{os.getpid() % 250}" if self.can_cut else "127.0.0"
        first = 11 if self.can_cut else 1
        self.hosts = {name: f"{self._net}.{first + number}" for number, name in enumerate(NODES)}
        if self.can_cut:
            self._lay_networks()
        peer = _free_port()
        self.ports = {name: _free_port() for name in NODES}
        self.rest = {name: _free_port() for name in NODES}
        self._own(self.place)
        etcd = f"{self._net}.1:{_free_port()}"
        here = f"http://{etcd}"
        self.etcd = self._start("etcd", [
            "etcd", "--data-dir", str(self.place / "etcd"), "--listen-client-urls", here,
            "--advertise-client-urls", here, "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        ])
        self.patroni: dict[str, subprocess.Popen[bytes]] = {}
        for name in NODES:
            (self.place / name).mkdir()
            (self.place / name / "data").mkdir(mode=0o700)
            for each in (self.place / name, self.place / name / "data"):
                self._own(each)
            (self.place / name / "patroni.yml").write_text(_NODE.format(
                name=name, rest=self.rest[name], etcd=etcd, port=self.ports[name], place=self.place,
                programs=programs, host=self.hosts[name], net=f"{self._net}.0/24",
            ))
            self.start(name)
            if name == "a":
                wait_until(self.leader, "the first node leads", 90)
        self.wait_whole()

    def _lay_networks(self) -> None:
        bridge = self._bridge
        _ip(f"link add {bridge} type bridge")
        _ip(f"addr add {self._net}.1/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for name, host in self.hosts.items():
            space = f"{bridge}{name}"
            _ip(f"netns add {space}")
            _ip(f"link add {bridge}-{name} type veth peer name eth0 netns {space}")
            _ip(f"link set {bridge}-{name} master {bridge} up")
            _ip(f"-n {space} addr add {host}/24 dev eth0")
            for device in ("lo", "eth0"):
                _ip(f"-n {space} link set {device} up")

    def cut(self, name: str) -> None:
        """Take a node's network away: nothing that it sends arrives, and nothing reaches it."""
        _ip(f"link set {self._bridge}-{name} down")

    def heal(self, name: str) -> None:
        """Give it back."""
        _ip(f"link set {self._bridge}-{name} up")

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, *self._user)

    def _start(self, name: str, words: list[str]) -> subprocess.Popen[bytes]:
        more: dict[str, Any] = {}
        if self.can_cut and name in NODES and self._user is not None:
            user, group = self._user
            become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
            words = ["ip", "netns", "exec", f"{self._bridge}{name}", *become, *words]
        elif self._user is not None:
            more = {"user": self._user[0], "group": self._user[1], "extra_groups": []}
        with (self.place / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.place,
                env={**os.environ, "HOME": str(self.place), "PYTHONPATH": ""}, **more,
            )  # fmt: skip

    def start(self, name: str) -> None:
        """Start a node's Patroni, which starts its server."""
        for stale in ("data/postmaster.pid", f".s.PGSQL.{self.ports[name]}.lock"):
            file = self.place / name / stale
            if file.exists() and not alive(int(file.read_text().splitlines()[0])):
                file.unlink()  # of a zombie
        self.patroni[name] = self._start(
            name, [shutil.which("patroni") or "patroni", str(self.place / name / "patroni.yml")]
        )

    def url(self, schema: str) -> str:
        """That of a store, over all nodes."""
        hosts = ",".join(f"{self.hosts[name]}:{self.ports[name]}" for name in NODES)
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write&schema={schema}"

    def members(self) -> dict[str, tuple[str, str]]:
        """Role and state of each node, as any of them says."""
        for name in NODES:
            try:
                with urlopen(f"http://{self.hosts[name]}:{self.rest[name]}/cluster", timeout=2) as answer:
                    found = json.load(answer)
            except (OSError, ValueError):
                continue
            return {each["name"]: (each["role"], each["state"]) for each in found["members"]}
        return {}

    def leader(self) -> str:
        """Who leads, and takes writes; empty if nobody does."""
        members = self.members().items()
        return next((name for name, found in members if found == ("leader", "running")), "")

    def is_whole(self) -> bool:
        """Whether all nodes run, and one of them is a synchronous standby."""
        members = self.members()
        return (
            len(members) == len(NODES) and any(role == "sync_standby" for role, _ in members.values())
            and all(state in ("running", "streaming") for _, state in members.values())
        )

    def wait_whole(self, deadline_s: float = 300.0) -> None:
        """Wait until it is whole; where it is not, say what each node said last."""
        try:
            wait_until(self.is_whole, "all nodes follow", deadline_s)
        except AssertionError as error:
            logs = [self.place / f"{name}.log" for name in NODES]
            last = "\n".join(f"{log.name}:\n{log.read_text()[-1500:]}" for log in logs)
            raise AssertionError(f"{error}\n{self.members()}\n{last}") from None

    def pids(self, name: str) -> list[int]:
        """Patroni's of a node, and all of its server's."""
        found = [self.patroni[name].pid]
        file = self.place / name / "data" / "postmaster.pid"
        try:
            first = int(file.read_text().splitlines()[0])
            found += [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        except (OSError, ValueError, IndexError):
            pass
        return found

    def signal(self, name: str, number: int) -> None:
        """Send Patroni and the server of a node a signal."""
        for pid in self.pids(name):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill(self, name: str) -> None:
        """SIGKILL a node as a whole."""
        pids = self.pids(name)
        self.signal(name, signal.SIGSTOP)
        pids += self.pids(name)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.patroni[name].wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the node's processes end")

    def remove(self) -> None:
        """End all of it."""
        for name in NODES:
            if name in self.patroni:
                self.kill(name)
        self.etcd.kill()
        self.etcd.wait()
        if self.can_cut:
            for name in NODES:
                _ip(f"netns del {self._bridge}{name}")
            _ip(f"link del {self._bridge}")
        shutil.rmtree(self.place, ignore_errors=True)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, timeout=30)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
