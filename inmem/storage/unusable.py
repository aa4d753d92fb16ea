"""What an error of LMDB means to whoever reads: that bytes are wrong is said only where they were read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import lmdb

from inmem.errors import CorruptionError, InmemError, InvariantError, LimitError, WriterUnavailableError

# Pages that are not what LMDB writes. Everything else says something of this process or machine.
_WRONG_BYTES: Final = (
    lmdb.BadChecksumError, lmdb.BadDbiError, lmdb.BadValsizeError, lmdb.CorruptedError, lmdb.CursorFullError,
    lmdb.IncompatibleError, lmdb.InvalidError, lmdb.NotFoundError, lmdb.PageFullError,
    lmdb.PageNotFoundError, lmdb.ProblemError, lmdb.VersionMismatchError,
)


def unusable(error: lmdb.Error, path: Path | str) -> InmemError:
    """The error that a user gets for one of LMDB on an image."""
    if isinstance(error, _WRONG_BYTES):
        return CorruptionError(f"the image {path} cannot be read: {error}", file=str(path), offset=0)
    if "already open in this process" in str(error):
        return InvariantError(
            f"another copy of the module inmem has {path} open in this process",
            hint="The module was loaded twice: dropped and imported again by a reloader, or from two places "
            "on sys.path. Close the handles of the other copy, or keep inmem from being loaded again.",
        )
    if isinstance(error, lmdb.MemoryError | lmdb.TlsFullError):
        return LimitError(
            f"the image {path} cannot be mapped: {error}", what="memory of this process",
            hint="Raise the limit on address space (ulimit -v), or close other stores.",
        )
    return WriterUnavailableError(
        f"the image {path} cannot be used: {error}", path=str(path),
        hint="Nothing was found damaged. Try again; if it stays so, start the program anew.",
    )
