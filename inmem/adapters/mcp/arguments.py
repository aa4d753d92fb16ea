"""How a method becomes a tool: what its arguments are checked for, and what a failure says.

Invariant: what a client sends is what is stored. The SDK reads a text that happens to be JSON as what it
says, so the text "[1]" would become a list. Here a text stays a text, and an argument that a tool
does not have is refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, TypeVar

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

import inmem
from inmem.adapters.mcp.pages import MAX_LIMIT
from inmem.exchange import from_json

F = TypeVar("F", bound=Callable[..., Awaitable[BaseModel]])

_NAMED: Final = frozenset({"properties", "$defs"})  # parts of a schema that are named by us

MAX_WAIT_S: Final = 60.0  # of one call: clients give up after a while

Run = Annotated[str, Field(description="A run's id; or @agent, @app, @tenant: what runs share.")]
Cursor = Annotated[str | None, Field(description="The next_cursor of the page before; none for the first.")]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT, description="No more than this. A page may have less.")]
Offset = Annotated[
    int, Field(ge=0, description="Where to go on in the JSON text of a long value: the next_offset before.")
]
Prefix = Annotated[str | None, Field(description="Only names that begin with this.")]
NewestFirst = Annotated[bool, Field(description="The last ones first.")]
WaitS = Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="Wait for up to so many seconds.")]
Tags = Annotated[list[str] | None, Field(description="Short labels to find it by.")]
Metadata = Annotated[
    dict[str, Any] | None, Field(description="An object with whatever should be kept with it.")
]
JsonValue = Annotated[
    Any,
    Field(
        description='Any JSON value, stored as it is given. {"$bytes": "<base64>"} stands for bytes, '
        'and {"$float": "nan"} for a number that JSON lacks.'
    ),
]


class ExactArguments(FuncMetadata):
    """A tool's arguments, as they are given."""

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        """Nothing: a text that happens to be JSON is a text."""
        return data


def is_tool(
    title: str, *, changes: bool = False, destroys: bool = False, repeatable: bool = False
) -> Callable[[F], F]:
    """Mark a method as a tool. The docstring is its description.

    `changes` says that it changes the store, `destroys` that it may remove or overwrite something, and
    `repeatable` that a second call with the same arguments changes nothing more.
    """

    def mark(method: F) -> F:
        method.hints = ToolAnnotations(  # type: ignore[attr-defined]
            title=title, read_only_hint=not changes, destructive_hint=destroys if changes else None,
            idempotent_hint=repeatable if changes else None, open_world_hint=False,
        )
        return method

    return mark


def tools_of(owner: object) -> list[Tool]:
    """The tools that an object has, in the order in which they are written."""
    names = [name for name, member in vars(type(owner)).items() if hasattr(member, "hints")]
    return [_tool(getattr(owner, name)) for name in names]


def _tool(method: Callable[..., Awaitable[BaseModel]]) -> Tool:
    hints: ToolAnnotations = method.hints  # type: ignore[attr-defined]
    tool = Tool.from_function(
        _telling(method), title=hints.title, description=inspect.cleandoc(method.__doc__ or ""),
        annotations=hints, structured_output=True,
    )
    made = tool.fn_metadata
    strict: type[ArgModelBase] = type(
        made.arg_model.__name__, (made.arg_model,), {"model_config": ConfigDict(extra="forbid")}
    )
    tool.fn_metadata = ExactArguments(
        arg_model=strict, output_schema=_plain(made.output_schema), output_model=made.output_model,
        wrap_output=made.wrap_output,
    )
    tool.parameters = _plain(strict.model_json_schema(by_alias=True))
    return tool


def _plain(schema: Any) -> Any:
    """A schema without the titles that repeat names: a third less for a model to read."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _plain(part) for name, part in schema.items() if name not in ("title", *_NAMED)}
    for name in _NAMED & schema.keys():  # of names of ours, and one of them may be `title`
        found[name] = {key: _plain(part) for key, part in schema[name].items()}
    return found


def _telling(method: Callable[..., Awaitable[BaseModel]]) -> Callable[..., Awaitable[BaseModel]]:
    """The method, whose errors say to the client what they say to a program."""

    @functools.wraps(method)
    async def tell(*args: Any, **kwargs: Any) -> BaseModel:
        try:
            return await method(*args, **kwargs)
        except inmem.InmemError as error:
            raise ToolError(text_of(error)) from error

    return tell


def text_of(error: inmem.InmemError) -> str:
    """What an error says, what to do, and its code.

    >>> text_of(inmem.NotFoundError("the run has no key 'a'"))
    "the run has no key 'a'. Create it first, or check its name. (code: not_found)"
    """
    again = ", the same call may succeed if it is made again" if error.retryable else ""
    return f"{error.message}. {error.hint} (code: {error.code}{again})"


def value_of(given: Any, argument: str = "value") -> Any:
    """The value that JSON stands for.

    Raises:
        InvalidInputError: it has a mark that is not known.
    """
    try:
        return from_json(given)
    except ValueError as error:
        raise inmem.InvalidInputError(f"{argument}: {error}", argument=argument) from None


def metadata_of(given: dict[str, Any] | None) -> dict[str, Any]:
    """Metadata that was given; an object with one mark is no metadata.

    Raises:
        InvalidInputError: it is no object, once its marks are read.
    """
    found = value_of(given or {}, "metadata")
    if type(found) is not dict:
        raise inmem.InvalidInputError("metadata must be an object, not a value", argument="metadata")
    return found


def chosen(**given: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in given.items() if value is not None}
