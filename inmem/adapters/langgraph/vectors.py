"""Vectors of items: which texts of an item are embedded, how vectors are stored, how near they are.

Invariant: a stored vector has length 1, or 0 if the embedding was 0, so the
cosine of two is their scalar product.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Callable, Sequence
from operator import mul
from typing import Any, Final

from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig, PutOp, ensure_embeddings, get_text_at_path, tokenize_path

import inmem

_ALL: Final = "$"
_FLOAT_BYTES: Final = 4


class ItemEmbedding:
    """How a store embeds its items, as its `index` says."""

    def __init__(self, index: IndexConfig) -> None:
        self.config = index
        if "embed" not in index:
            raise _wrong("index names no embed function")
        self.embeddings: Embeddings = ensure_embeddings(index["embed"])
        dims = self._dims = index.get("dims")
        if dims is not None and (not isinstance(dims, int) or dims < 1):
            raise _wrong(f"index: dims must be a number of dimensions, not {dims!r}")
        self._fields = _tokenized(index.get("fields") or [_ALL])

    def texts(self, op: PutOp) -> list[str]:
        """The texts of an item that are embedded."""
        if op.value is None or op.index is False:
            return []
        fields = self._fields if op.index is None else _tokenized(op.index)
        return [text for field in fields for text in get_text_at_path(op.value, field)]

    def packed(self, texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> dict[str, bytes]:
        """The vectors of texts, as they are stored.

        Raises:
            InvalidInputError: these are no vectors of so many dimensions for so many texts.
        """
        if len(vectors) != len(texts):
            raise _wrong(f"embed gave {len(vectors)} vectors for {len(texts)} texts")
        return {text: self._unit(vector) for text, vector in zip(texts, vectors, strict=True)}

    def _unit(self, vector: Sequence[float]) -> bytes:
        numbers = [float(number) for number in vector]
        if self._dims not in (None, len(numbers)):
            raise _wrong(f"embed gave a vector of {len(numbers)} dimensions; index says {self._dims}")
        length = math.hypot(*numbers)
        if not math.isfinite(length):
            raise _wrong("embed gave a vector that is not finite")
        return struct.pack(f"<{len(numbers)}f", *(number / length if length else 0.0 for number in numbers))


def cosines(query: bytes, vectors: Sequence[bytes]) -> list[float]:
    """How near unit vectors are to one. numpy is used if it is installed.

    Raises:
        InvalidInputError: one has another number of dimensions.
    """
    for other in {len(vector) for vector in vectors} - {len(query)}:
        raise inmem.InvalidInputError(
            f"an item was embedded with {other // _FLOAT_BYTES} dimensions, the query with"
            f" {len(query) // _FLOAT_BYTES}", argument="index",
            hint="Search with the embedding that the items were put with, or put them again.",
        )  # fmt: skip
    return _product()(query, vectors) if vectors else []


def _tokenized(fields: Sequence[str]) -> list[str | list[str]]:
    return [field if field == _ALL else tokenize_path(field) for field in fields]


def _plain_product(query: bytes, vectors: Sequence[bytes]) -> list[float]:
    numbers = struct.Struct(f"<{len(query) // _FLOAT_BYTES}f")
    wanted = numbers.unpack(query)
    return [math.fsum(map(mul, wanted, numbers.unpack(vector))) for vector in vectors]


def _numpy_product(query: bytes, vectors: Sequence[bytes]) -> list[float]:
    import numpy

    rows: Any = numpy.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)
    found: list[float] = (rows @ numpy.frombuffer(query, "<f4")).tolist()
    return found


def _product() -> Callable[[bytes, Sequence[bytes]], list[float]]:
    return _plain_product if importlib.util.find_spec("numpy") is None else _numpy_product


def _wrong(problem: str) -> inmem.InvalidInputError:
    return inmem.InvalidInputError(problem, argument="index")
