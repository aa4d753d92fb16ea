"""What the facades share: checking arguments, and committing outside a transaction.

Invariant: a bad argument is refused here, with its name and limit, before
anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol

from inmem.client.attachment import Attachment
from inmem.client.transaction import commit_call, commit_put, resolved_as
from inmem.config import MAX_TTL_S
from inmem.errors import CommitUnknownError, InvalidInputError
from inmem.keys import check_tag_count, encode_label, shorten


class Host(Protocol):
    """What a facade holds: the database, as far as it needs it."""

    def run(self, run_id: str) -> Any: ...


class Autocommit:
    """Commits of their own, for facades outside transactions."""

    __slots__ = ("_attachment", "_timeout_s", "now_us")

    def __init__(self, attachment: Attachment, timeout_s: float) -> None:
        self._attachment = attachment
        self._timeout_s = timeout_s
        self.now_us = attachment.image.now_us

    def put(self, key: bytes, payload: bytes, expires: int = 0) -> int:
        """Write one record; its version."""
        return commit_put(self._attachment, key, payload, expires, self._timeout_s)

    def call(
        self, procedure: str, *arguments: Any, convert: Callable[[Any], Any] = lambda result: result
    ) -> Any:
        """Run one procedure; what `convert` makes of its result, also when that comes by a resend."""
        try:
            return convert(commit_call(self._attachment, procedure, list(arguments), self._timeout_s)[0])
        except CommitUnknownError as error:
            raise resolved_as(error, lambda result: convert(result[0])) from None

    def send(self, body: bytes) -> int:
        """Commit a ready write set; its version."""
        try:
            return self._attachment.session().commit(body, sync=False, timeout_s=self._timeout_s).version
        except CommitUnknownError as error:
            raise resolved_as(error, lambda applied: applied.version) from None


def check_limit(limit: object) -> int | None:
    """The value if it can be a limit.

    Raises:
        InvalidInputError: neither None nor a non-negative int.
    """
    if limit is None or (type(limit) is int and limit >= 0):
        return limit
    raise InvalidInputError(
        f"limit must be None or an int of at least 0, not {shorten(limit)}", argument="limit"
    )


def check_tags(tags: object) -> list[str]:
    """The tags as a list, each once, in their order.

    Raises:
        InvalidInputError: not a sequence of `str`.
        InvalidKeyError: a tag is empty, over 128 bytes or has NUL.
        LimitError: there are more than 256.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise InvalidInputError("tags must be a sequence of str", argument="tags")
    # Through the bytes: the `str` of a member of an enum may be another text than what it holds.
    labels = list(dict.fromkeys(encode_label(label, "tags").decode() for label in tags))
    check_tag_count(len(labels))
    return labels


def check_metadata(metadata: object) -> dict[str, Any]:
    """The metadata as a dict; None is an empty one.

    Raises:
        InvalidInputError: not a mapping.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"metadata must be a mapping, not {type(metadata).__name__}", argument="metadata"
        )
    return dict(metadata)


def expiry_us(ttl: object, now_us: int) -> int:
    """The time at which a ttl from now ends, microseconds; 0 for None.

    Raises:
        InvalidInputError: not a positive number of seconds (or `timedelta`) up to a century.
    """
    if ttl is None:
        return 0
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds <= MAX_TTL_S  # also if it is not a number
    ):
        raise InvalidInputError(
            f"ttl must be above 0 and at most {MAX_TTL_S} seconds (int, float or timedelta), "
            f"not {shorten(ttl)}",
            argument="ttl",
        )
    return now_us + max(1, round(seconds * 1e6))
