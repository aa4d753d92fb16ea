"""Jobs, as the user sees them."""

from __future__ import annotations

from typing import Final

from inmem.errors import InvalidInputError
from inmem.keys import encode_name, shorten

STATES: Final = ("ready", "delayed", "claimed", "dead", "done")  # their numbers are stored
READY: Final = STATES.index("ready")


class JobId(str):
    """A job's identifier within its run: its queue, a slash, and its number in the queue.

    A plain `str` of this form is accepted wherever a job's id is.

    >>> JobId("mail/17").queue, JobId("mail/17").number
    ('mail', 17)
    """

    __slots__ = ()

    @classmethod
    def of(cls, queue: str, number: int) -> JobId:
        """That of a job."""
        return cls(f"{queue}/{number}")

    @property
    def queue(self) -> str:
        """The queue that the job is in."""
        return self.rpartition("/")[0]

    @property
    def number(self) -> int:
        """Its number in the queue, from 0 on in the order of commits."""
        return int(self.rpartition("/")[2])

    def __repr__(self) -> str:
        return f"JobId({str(self)!r})"


def check_job_id(job_id: object, queue_bytes: int, argument: str = "job_id") -> tuple[bytes, int]:
    """Queue and number of a job's id.

    Raises:
        InvalidInputError: it is none.
    """
    if isinstance(job_id, str):
        queue, slash, number = job_id.rpartition("/")
        if slash and number.isascii() and number.isdigit() and len(number) < 20 and int(number) < 1 << 63:
            return encode_name(queue, argument, queue_bytes), int(number)
    raise InvalidInputError(
        f"job_id must be a queue, a slash and a number, not {shorten(job_id)}", argument=argument
    )
