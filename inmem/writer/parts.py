"""The parts of one writer, for those of them that use many others."""

from __future__ import annotations

from dataclasses import dataclass

from inmem.config import Settings
from inmem.host.clock import StoreClock
from inmem.host.control import Control
from inmem.writer.checkpoints import Checkpoints
from inmem.writer.committer import Committer, Log
from inmem.writer.endpoint import Endpoint
from inmem.writer.generations import Generations
from inmem.writer.greeting import Greeter
from inmem.writer.refusals import Refusals
from inmem.writer.sampler import Sampler
from inmem.writer.waking import Waking


@dataclass(frozen=True, slots=True)
class Parts:
    """They are made once, when the writer starts."""

    settings: Settings
    control: Control
    clock: StoreClock
    log: Log
    committer: Committer
    endpoint: Endpoint
    generations: Generations
    greeter: Greeter
    checkpoints: Checkpoints | None  # None without a log
    sampler: Sampler
    refusals: Refusals
    waking: Waking
