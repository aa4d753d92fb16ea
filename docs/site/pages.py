"""Pages of the site that are made of files elsewhere, and proof that pages load nothing from elsewhere.

README.md is the first page and CHANGELOG.md the last, so that nothing is
written twice. What README.md points to outside of docs is copied along.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")
PERFORMANCE = re.compile(r"<!-- performance:begin -->\n(.*?)<!-- performance:end -->", re.DOTALL)
# An element that a browser fetches when it shows the page, unlike a link.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*?\ssrc=["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preconnect|preload|icon|modulepreload))"""
    r"""[^>]*?\shref=["']?(?:https?:)?//[^\s"'>]+""",
    re.IGNORECASE,
)
texts: dict[str, str] = {}  # of pages, by their file
IMPORTED = re.compile(r"""@import\s+(?:url\()?["']?(?:https?:)?//|url\(["']?(?:https?:)?//""")


def moved(target: str) -> str:
    """Where the site has what README.md and CHANGELOG.md point to."""
    if target in ("README.md", "CHANGELOG.md"):
        return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}[target]
    return target.removeprefix("docs/")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs, and the files that they point to."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name, text in (("index.md", readme), ("changelog.md", changes)):
        page = LINK.sub(lambda match: moved(match[1]), text)
        files.append(File.generated(config, name, content=page))
        for target in sorted({match[1] for match in LINK.finditer(text)}):
            source, name = ROOT / target, moved(target)
            if source.is_file() and source.suffix != ".md" and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(source)))
    worker = str(Path(__file__).with_name("iframe-worker.js"))
    files.append(File.generated(config, "assets/iframe-worker.js", abs_src_path=worker))
    if files.get_file_from_path("PERFORMANCE.md") is None:
        found = PERFORMANCE.search(readme)
        text = f"# Performance\n\n{found[1] if found else ''}"
        files.append(File.generated(config, "PERFORMANCE.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Keep the text of a page, for those who read text: docs/llms.txt names it."""
    if not page.file.src_uri.startswith("reference/"):
        texts[page.file.src_uri] = markdown


def on_post_build(config: Any) -> None:
    """Put the texts of pages beside them, and fail if a page would load something over the network."""
    site = Path(config["site_dir"])
    for name, text in texts.items():
        (site / name).write_text(text, encoding="utf-8")
    found = [
        f"{path.relative_to(site)}: {match[0]}"
        for pattern, ending in ((LOADED, "html"), (IMPORTED, "css"))
        for path in sorted(site.rglob(f"*.{ending}"))
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("loaded from elsewhere:\n" + "\n".join(found[:20]))
