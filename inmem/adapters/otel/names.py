"""Ids of spans, and names of attributes.

Invariant: the ids of a run and of its traces follow from namespace, run and trace id alone. So a span that
is sent twice is the same span twice, whoever sends it.
"""

from __future__ import annotations

import hashlib
from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags

import inmem

# GenAI conventions are in development. This is the last release of the general conventions that has them:
# names and kinds of spans here are of it. What has followed in a repository of its own changes some of them.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.41.0"

SPAN_KEY: Final = "otel.span"  # in the metadata of a trace: the span that it was recorded from
TRACE_KEY: Final = "otel.trace_id"  # in the metadata of a run that was made for spans

OPERATION: Final = "gen_ai.operation.name"
AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION: Final = "gen_ai.conversation.id"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
QUERY_TEXT: Final = "gen_ai.retrieval.query.text"
DOCUMENTS: Final = "gen_ai.retrieval.documents"
DATA_SOURCE: Final = "gen_ai.data_source.id"
RESULTS_COUNT: Final = "inmem.query.results_count"
ERROR_TYPE: Final = "error.type"

# What has prompts, arguments, results and documents in it, here and in other libraries: left out unless
# content is asked for. A name stands for all that begin with it and a dot, too.
_CONTENT: Final = frozenset({
    TOOL_ARGUMENTS, TOOL_RESULT, QUERY_TEXT, DOCUMENTS, "inmem.content",
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
    "gen_ai.tool.definitions", "gen_ai.prompt", "gen_ai.completion", "gen_ai.event.content",
    "gen_ai.evaluation.explanation", "input.value", "output.value", "llm.input_messages",
    "llm.output_messages", "llm.prompts", "llm.completions", "retrieval.documents",
    "traceloop.entity.input", "traceloop.entity.output",
})


def is_content(name: str) -> bool:
    """Whether an attribute has content: itself, or a name that it goes on from."""
    while name not in _CONTENT:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return False
    return True


def span_context(db: inmem.Database, run: str, trace_id: str | None = None) -> SpanContext:
    """The ids under which a run, or one of its traces, is exported. Cost: 3 µs; nothing is read.

    With it a program links spans of its own to a run, or begins them below it.

    >>> import inmem
    >>> from inmem.adapters.otel import span_context
    >>> with inmem.open() as db:
    ...     run, trace = span_context(db, "run-1"), span_context(db, "run-1", "t")
    >>> run.trace_id == trace.trace_id, run.span_id == trace.span_id
    (True, False)
    """
    return context_of(str(db.namespace), run, trace_id or "")


def context_of(namespace: str, run: str, part: str = "") -> SpanContext:
    """The ids of the run itself, of a trace, or of another part of the run."""
    of_run = hashlib.sha256(f"{namespace}\0{run}".encode()).digest()
    trace_id, span_id = of_run[:16], of_run[16:24]
    if part:
        span_id = hashlib.sha256(f"{namespace}\0{run}\0{part}".encode()).digest()[:8]
    # Zero is no id: one in 2**64 becomes one.
    ids = int.from_bytes(trace_id) or 1, int.from_bytes(span_id) or 1
    return SpanContext(*ids, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
