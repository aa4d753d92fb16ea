"""Exchange: runs as files, out of a store and into another. A public module.

    import inmem.exchange

Invariant: what goes out comes in again equal in every value, or is refused
with file and line. docs/EXPORT.md describes the files.

`export_runs` and `import_runs` keep runs as they are: chains, versions, times.
`import_recorded` takes the recorded runs of agents of other projects;
`find_files`, `parse_file`, `store_step` and `rebuild` are its parts.
"""

from __future__ import annotations

from inmem.exchange.export import Exported, count_runs, export_runs
from inmem.exchange.import_ import Imported, discard_import, import_runs, unfinished_imports
from inmem.exchange.recorded import Recorded, done_of, import_recorded, progress_of, store_step
from inmem.exchange.trajectories import (
    FORMATS,
    Rejected,
    Trajectory,
    TrajectoryStep,
    find_files,
    parse_file,
    rebuild,
)

__all__ = [
    "FORMATS",
    "Exported",
    "Imported",
    "Recorded",
    "Rejected",
    "Trajectory",
    "TrajectoryStep",
    "count_runs",
    "discard_import",
    "done_of",
    "export_runs",
    "find_files",
    "import_recorded",
    "import_runs",
    "parse_file",
    "progress_of",
    "rebuild",
    "store_step",
    "unfinished_imports",
]
