"""Exchange: runs as files, out of a store and into another. A public module.

    import inmem.exchange

Invariant: what goes out comes in again equal in every value, or is refused
with file and line. docs/EXPORT.md describes the files.

`export_runs` and `import_runs` keep runs as they are: chains, versions, times.
`to_json` and `from_json` write single values as the files do.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from inmem.exchange.export import Exported, count_runs, export_runs
from inmem.exchange.import_ import Imported, discard_import, import_runs, unfinished_imports
from inmem.jsonvalues import from_json, to_json

__all__ = [
    "Exported",
    "Imported",
    "count_runs",
    "discard_import",
    "export_runs",
    "from_json",
    "import_runs",
    "to_json",
    "unfinished_imports",
]


if TYPE_CHECKING:  # nothing dynamic where a type checker looks
    from inmem.exchange.recorded import *
else:

    def __getattr__(name: str) -> Any:
        """The names of `inmem.exchange.recorded`, deprecated here."""
        import inmem.exchange.recorded  # not by `from`, which would ask here first

        recorded = inmem.exchange.recorded
        if name not in recorded.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"inmem.exchange.{name} is deprecated: recorded runs of agents leave inmem with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(recorded, name)
