"""The tests of dogpile.cache's wheel for backends, with ours: `run_suite` copies this to where it runs."""

from __future__ import annotations

import os

from dogpile.testing.fixtures import (
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)

import inmem.adapters.dogpile

ARGUMENTS = {"arguments": {"store": os.environ["INMEM_TESTED"], "name": f"suite-{os.getpid()}"}}
assert inmem.adapters.dogpile.InmemBackend


class TestBackend(_GenericBackendTestSuite, _GenericMutexTestSuite):
    """Values and mutexes."""

    backend = "inmem"
    config_args = ARGUMENTS


class TestSerializers(_GenericSerializerTestSuite, _GenericBackendTestSuite):
    """Values by another serializer."""

    backend = "inmem"
    config_args = ARGUMENTS
