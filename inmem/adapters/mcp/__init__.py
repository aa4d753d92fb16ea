"""A store for clients of the Model Context Protocol: editors, chat programs and agents.

Of the extra `mcp`. The command `inmem mcp` serves a store; programs use `mcp_server`.
"""

from inmem.adapters.mcp.server import mcp_server
from inmem.adapters.mcp.serving import serve_http, serve_stdio

__all__ = ["mcp_server", "serve_http", "serve_stdio"]
