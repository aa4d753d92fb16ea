"""The built documentation in a real browser, opened as files: searching it needs no server and no network.

Building takes 6 s of a free machine and more of a busy one, so it runs with INMEM_EXHAUSTIVE=1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from support import wait_until

ROOT = Path(__file__).parents[2]
FOUND = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"
TYPE = """(() => {
  const field = document.querySelector(".md-search__input");
  field.focus();
  field.value = TEXT;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  field.dispatchEvent(new Event("keyup", {bubbles: true}));
})()"""


def test_the_page_of_settings_asks_for_it() -> None:
    """Cheap, so always: the plugin is on, and what it would load from elsewhere is ours."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert re.search(r"^  - offline\b", settings, re.MULTILINE)
    assert re.search(r"^  polyfills: \[assets/iframe-worker\.js\]", settings, re.MULTILINE)
    assert (ROOT / "docs" / "site" / "iframe-worker.js").is_file()


@pytest.mark.skipif(not os.environ.get("INMEM_EXHAUSTIVE"), reason="builds the site: set INMEM_EXHAUSTIVE=1")
def test_the_site_is_searched_from_files(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)], cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("llms.txt", "llms-full.txt", "concepts.md", "guide/kv.md"):
        assert (site / name).stat().st_size > 500, name
    with Browser(program) as browser:
        browser.open(site / "guide" / "kv.html")
        browser.evaluate(TYPE.replace("TEXT", "'late holders'"))
        found: Any = wait_until(lambda: browser.evaluate(FOUND), "something is found")
        assert any(link.endswith("guide/leases.html#late-holders") for link in found), found
        assert browser.messages == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
