"""The error tree: its shape, its codes, and what survives a pickle and the wire."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import msgpack
import pytest

from inmem import errors
from inmem.errors import ClosedError, CommitUnknownError, InmemError
from inmem.wire import ERRORS_BY_CODE, from_wire, to_wire

# class: (base, code, retryable, fields). Codes are in logs and in other people's programs: a code is
# never changed and never given to another class.
TREE: dict[str, tuple[str, str, bool, tuple[str, ...]]] = {
    "InmemError": ("Exception", "error", False, ()),
    "InvalidInputError": ("InmemError", "invalid_input", False, ("argument",)),
    "InvalidKeyError": ("InvalidInputError", "invalid_key", False, ("argument",)),
    "InvalidValueError": ("InvalidInputError", "invalid_value", False, ("argument", "path")),
    "InvalidRunIdError": ("InvalidInputError", "invalid_run_id", False, ("argument",)),
    "NotFoundError": ("InmemError", "not_found", False, ()),
    "RunNotFoundError": ("NotFoundError", "run_not_found", False, ("run_id",)),
    "CellNotFoundError": ("NotFoundError", "cell_not_found", False, ("name",)),
    "TraceNotFoundError": ("NotFoundError", "trace_not_found", False, ("trace_id",)),
    "JobNotFoundError": ("NotFoundError", "job_not_found", False, ("job_id",)),
    "AlreadyExistsError": ("InmemError", "already_exists", False, ()),
    "RunExistsError": ("AlreadyExistsError", "run_exists", False, ("run_id",)),
    "CellExistsError": ("AlreadyExistsError", "cell_exists", False, ("name", "version")),
    "TraceExistsError": ("AlreadyExistsError", "trace_exists", False, ("trace_id",)),
    "InvariantError": ("InmemError", "invariant", False, ()),
    "AppendOnlyError": ("InvariantError", "append_only", False, ()),
    "InvalidTransitionError": (
        "InvariantError", "invalid_transition", False, ("from_status", "to_status")
    ),
    "RunDeletedError": ("InvariantError", "run_deleted", False, ("run_id",)),
    "VersionMismatchError": ("InvariantError", "version_mismatch", False, ("expected", "actual")),
    "LeaseLostError": ("InvariantError", "lease_lost", False, ("name", "token")),
    "JobLostError": ("InvariantError", "job_lost", False, ("job_id", "token")),
    "RetryableError": ("InmemError", "retryable", True, ()),
    "ConflictError": (
        "RetryableError", "conflict", True, ("key", "read_version", "committed_version", "is_next")
    ),
    "SnapshotTooOldError": ("RetryableError", "snapshot_too_old", True, ("age_s", "max_age_s")),
    "BusyError": ("RetryableError", "busy", True, ("what", "limit")),
    "LeaseHeldError": ("RetryableError", "lease_held", True, ("name", "holder", "expires_at")),
    "CommitUnknownError": ("InmemError", "commit_unknown", False, ("commit_id",)),
    "CommitsLostError": ("InmemError", "commits_lost", False, ("lost", "version")),
    "WaitTimeoutError": ("InmemError", "wait_timeout", False, ()),
    "StepFailedError": ("InmemError", "step_failed", False, ("step",)),
    "WriterUnavailableError": ("InmemError", "writer_unavailable", True, ("path",)),
    "DatabaseGoneError": ("InmemError", "database_gone", False, ("path",)),
    "StoreFullError": ("InmemError", "store_full", False, ("used_bytes", "quota_bytes")),
    "LimitError": ("InmemError", "limit", False, ("what", "size", "limit")),
    "CommitRefusedError": ("InmemError", "commit_refused", False, ("writers",)),
    "CorruptionError": ("InmemError", "corruption", False, ("file", "offset")),
    "FormatVersionError": ("InmemError", "format_version", False, ("found", "supported")),
    "ConfigMismatchError": (
        "InmemError", "config_mismatch", False, ("setting", "stored", "requested")
    ),
    "PermissionDeniedError": ("InmemError", "permission_denied", False, ("path",)),
    "ForkError": ("InmemError", "fork", False, ()),
    "ClosedError": ("InmemError", "closed", False, ()),
}

# Second bases, for plain callers.
ALSO = {"InvalidInputError": ValueError, "NotFoundError": KeyError, "WaitTimeoutError": TimeoutError}

CLASSES: list[type[InmemError]] = [getattr(errors, name) for name in TREE]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def sample(cls: type[InmemError]) -> InmemError:
    return cls("what happened", hint="what to do", **{name: f"<{name}>" for name in cls.field_names})


class TestTree:
    def test_is_exactly_the_documented_one(self) -> None:
        defined = {
            name
            for name, cls in vars(errors).items()
            if inspect.isclass(cls) and issubclass(cls, BaseException)
        }
        assert defined == set(TREE)
        assert sorted(errors.__all__) == sorted(TREE)

    @each_class
    def test_bases(self, cls: type[InmemError]) -> None:
        bases = [TREE[cls.__name__][0]]
        if cls.__name__ in ALSO:
            bases.append(ALSO[cls.__name__].__name__)
        assert [base.__name__ for base in cls.__bases__] == bases
        assert issubclass(cls, InmemError)

    @each_class
    def test_code_retryable_and_fields(self, cls: type[InmemError]) -> None:
        _, code, retryable, fields = TREE[cls.__name__]
        assert (cls.code, cls.retryable, cls.field_names) == (code, retryable, fields)

    def test_codes_are_unique(self) -> None:
        codes = [code for _, code, _, _ in TREE.values()]
        assert len(set(codes)) == len(codes)
        assert dict(ERRORS_BY_CODE) == {cls.code: cls for cls in CLASSES}

    @each_class
    def test_code_and_hint_are_said_by_every_class(self, cls: type[InmemError]) -> None:
        assert "code" in vars(cls)
        hint = cls("m").hint
        assert hint and hint == cls.default_hint
        assert cls.__doc__

    def test_the_tree_in_the_docstring_is_the_tree(self) -> None:
        lines = (errors.__doc__ or "").splitlines()
        listed = [re.findall(r"(?<!\()\b\w+Error\b", line) for line in lines]
        assert [name for some in listed for name in some] == list(TREE)

    def test_the_plain_bases_catch(self) -> None:
        with pytest.raises(ValueError):
            raise errors.InvalidKeyError("m")
        with pytest.raises(KeyError):
            raise errors.CellNotFoundError("m")


class TestInstances:
    @each_class
    def test_message_hint_and_fields(self, cls: type[InmemError]) -> None:
        error = sample(cls)
        assert str(error) == error.message == "what happened"  # KeyError would quote it
        assert error.hint == "what to do"
        assert error.fields == {name: f"<{name}>" for name in cls.field_names}
        for name in cls.field_names:
            assert getattr(error, name) == f"<{name}>"

    @each_class
    def test_omitted_fields_are_none(self, cls: type[InmemError]) -> None:
        assert cls("m").fields == dict.fromkeys(cls.field_names)

    @each_class
    def test_an_unknown_field_is_a_programming_error(self, cls: type[InmemError]) -> None:
        with pytest.raises(TypeError, match=f"{cls.__name__} has no field 'nonsense'"):
            cls("m", nonsense=1)

    @each_class
    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickling_keeps_everything(self, cls: type[InmemError], protocol: int) -> None:
        self.check_equal(sample(cls), pickle.loads(pickle.dumps(sample(cls), protocol)))  # noqa: S301

    @each_class
    def test_copying_keeps_everything(self, cls: type[InmemError]) -> None:
        self.check_equal(sample(cls), copy.copy(sample(cls)))
        self.check_equal(sample(cls), copy.deepcopy(sample(cls)))

    @staticmethod
    def check_equal(one: InmemError, two: Any) -> None:
        assert type(one) is type(two)
        assert (one.message, one.hint, one.fields) == (two.message, two.hint, two.fields)
        assert str(one) == str(two)


class TestWire:
    @each_class
    def test_round_trip_as_messagepack(self, cls: type[InmemError]) -> None:
        error = cls("what happened", **{name: f"<{name}>" for name in cls.field_names})
        again = from_wire(msgpack.unpackb(msgpack.packb(to_wire(error))))
        TestInstances.check_equal(error, again)

    def test_the_form_is_pinned(self) -> None:
        error = errors.LimitError("too big", what="value", size=2, limit=1)
        assert to_wire(error) == ["limit", "too big", {"what": "value", "size": 2, "limit": 1}]

    def test_an_unknown_code_keeps_its_message(self) -> None:
        error = from_wire(["from_a_later_version", "something new", {"field": 1}])
        assert type(error) is InmemError
        assert str(error) == "something new"

    def test_fields_that_a_later_version_added_are_left_out(self) -> None:
        error = from_wire(["run_deleted", "m", {"run_id": "r", "since": 1}])
        assert type(error) is errors.RunDeletedError
        assert error.fields == {"run_id": "r"}


class TestCommitUnknown:
    def test_without_its_session_it_cannot_resend(self) -> None:
        error = CommitUnknownError("m", commit_id="c")
        with pytest.raises(ClosedError) as caught:
            error.resend()
        assert "resend() where the error was first raised" in caught.value.hint

    def test_resend_passes_the_deadline_and_the_result(self) -> None:
        asked: list[float | None] = []

        def resend(timeout_s: float | None) -> int:
            asked.append(timeout_s)
            return 42

        error = CommitUnknownError("m")
        error.resender = resend
        assert (error.resend(), error.resend(1.5), error.resend(timeout_s=2.0)) == (42, 42, 42)
        assert asked == [None, 1.5, 2.0]

    def test_resend_does_not_cross_a_pickle(self) -> None:
        error = CommitUnknownError("m", commit_id="c")
        error.resender = lambda timeout_s: 42  # which itself does not pickle
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert again.commit_id == "c"
        with pytest.raises(ClosedError):
            again.resend()
        assert error.resend() == 42
