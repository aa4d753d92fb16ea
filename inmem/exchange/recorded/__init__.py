"""Recorded runs of agents of other projects: read, stored step by step, rebuilt.

Deprecated as a part of `inmem`: its names in `inmem.exchange` and `inmem
import --format` warn, and go with the next release. The programs under
`workers`, which replay recorded runs, use it until it moves there.
"""

from inmem.exchange.recorded.formats import FORMATS, find_files, parse_file
from inmem.exchange.recorded.storing import Recorded, done_of, import_recorded, progress_of, store_step
from inmem.exchange.recorded.trajectory import Rejected, Trajectory, TrajectoryStep, rebuild

__all__ = [
    "FORMATS",
    "Recorded",
    "Rejected",
    "Trajectory",
    "TrajectoryStep",
    "done_of",
    "find_files",
    "import_recorded",
    "parse_file",
    "progress_of",
    "rebuild",
    "store_step",
]
