"""How a chaos is run, and what came of it."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from workers.chaos.schedule import Rates
from workers.judge.chaos import Tally
from workers.judge.checks import Judged

# The quota: room that is filled and freed, and what the work leaves in a minute, measured and doubled.
ROOM_MIB: Final = 64
MIB_PER_MINUTE: Final = 20


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How a chaos is run."""

    seed: int
    minutes: float = 10.0
    workers: int = 16
    durability: str = "buffered"
    rates: Rates = field(default_factory=Rates)
    quota_mib: int | None = None  # None: as much as the work of so many minutes needs, and room to fill
    rate: float = 40.0  # operations of each worker per second, at most
    disk_mib: int | None = None  # the data directory is on a file system of this size
    directory: str | None = None  # where all of it is put; None: the system's place for temporary files
    timeout_s: float = 60.0  # of one commit, recoveries included
    store: str | None = None  # on a server: only workers are killed and stopped

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    def quota(self) -> int:
        """The quota of the store, in MiB."""
        if self.quota_mib is not None:
            return self.quota_mib
        return ROOM_MIB + math.ceil(MIB_PER_MINUTE * self.minutes)

    def command(self) -> str:
        """What repeats this."""
        words: list[Any] = ["python", "-m", "workers.chaos", "--minutes", f"{self.minutes:g}"]
        words += ["--seed", self.seed, "--workers", self.workers, "--durability", self.durability]
        for name, value in asdict(self.rates).items():
            if value != getattr(Rates(), name) and (name != "fill_disk" or self.disk_mib is not None):
                words += [OPTION_OF[name], f"{value:g}"]
        if self.rate != ChaosOptions(0).rate:
            words += ["--rate", f"{self.rate:g}"]
        if self.quota_mib is not None:
            words += ["--quota-mib", self.quota_mib]
        if self.disk_mib is not None:
            words += ["--disk", "--disk-mib", self.disk_mib]
        if self.store is not None:
            words += ["--store", "URL"]  # which may have a password
        if self.directory is not None:
            words += ["--directory", self.directory]
        return shlex.join(map(str, words))


OPTION_OF: Final = {
    "kill_writer": "--kills-per-minute",
    "stop_writer": "--stops-per-minute",
    "kill_worker": "--worker-kills-per-minute",
    "stop_worker": "--worker-stops-per-minute",
    "checkpoint": "--checkpoints-per-minute",
    "fill_memory": "--fills-per-minute",
    "fill_disk": "--disk-fills-per-minute",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill of the writer, until a commit was answered again."""

    seconds: float
    alone: bool  # nothing else was stopped, full or killed meanwhile


@dataclass(slots=True)
class ChaosResult(Judged):
    """What came of a chaos."""

    options: ChaosOptions
    done: dict[str, int] = field(default_factory=dict)  # disturbances, by kind
    left_out: int = 0  # that were planned, and for which there was no time
    notes: list[str] = field(default_factory=list)  # what could not be done, and why
    recoveries: list[Recovery] = field(default_factory=list)
    checkpoint_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    processes: int = 0
    image_bytes: int = 0
    wal_bytes: int = 0
    asked: int = 0
    reruns: int = 0
    work_s: float = 0.0
    verify_s: float = 0.0
    tally: Tally | None = None
    kept: str = ""  # where journals and store are, if something is wrong
