"""What sdist and wheel must hold. `python tests/helpers/distributions.py DIR` checks those in a directory."""

from __future__ import annotations

import email
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LEAST = {"inmem/py.typed", "inmem/cli/report.html", "inmem/web/assets/index.html", "inmem/demo/__main__.py"}
# In an sdist, beside the package.
WITH_IT = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
MADE = {"PKG-INFO", "setup.cfg"}


def source(root: Path) -> dict[str, bytes]:
    """The files of the package in a checkout."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "inmem").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }  # fmt: skip


def of_wheel(wheel: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of the package in a wheel, and those of its metadata by their names there."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    metadata = {name: files.pop(name) for name in list(files) if re.match(r"[^/]+\.dist-info/", name)}
    return files, {name.partition("/")[2]: data for name, data in metadata.items()}


def of_sdist(sdist: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of the package in an sdist, and those beside it."""
    package, beside = {}, {}
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                name = member.name.partition("/")[2]
                (package if name.startswith("inmem/") else beside)[name] = file.read()
    return package, beside


def is_made(name: str) -> bool:
    """Whether what builds an sdist has made this file."""
    return name in MADE or name.startswith("inmem.egg-info/")


def differences(what: str, found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """How two sets of files differ."""
    problems = [f"{what} lacks {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{what} has {name}, which is none of it" for name in sorted(found.keys() - wanted.keys())]
    both = sorted(found.keys() & wanted.keys())
    return problems + [f"{what} has another {name}" for name in both if found[name] != wanted[name]]


def metadata_problems(told: Message, project: dict[str, Any], version: str) -> list[str]:
    """What is wrong with the metadata of a wheel, for the project that pyproject.toml describes."""
    expected = {
        "Name": [project["name"]], "Version": [version], "License-Expression": [project["license"]],
        "License-File": project["license-files"], "Requires-Python": [project["requires-python"]],
        "Classifier": project["classifiers"], "Description-Content-Type": ["text/markdown"],
        "License": [],  # the old field, which the expression has replaced
    }
    return [
        f"{name} is {told.get_all(name, [])}, and not {values}"
        for name, values in expected.items() if told.get_all(name, []) != values
    ]  # fmt: skip


def problems_of(place: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the sdist and the wheel in a directory."""
    wheels, sdists = sorted(place.glob("*.whl")), sorted(place.glob("*.tar.gz"))
    version = runpy.run_path(str(root / "inmem" / "version.py"))["__version__"]
    names = [path.name for path in (*sdists, *wheels)]
    if names != [f"inmem-{version}.tar.gz", f"inmem-{version}-py3-none-any.whl"]:
        return [f"{place} has {names}, and not one sdist and one wheel of {version}"]
    wanted = source(root)
    problems = [f"the checkout lacks {name}" for name in sorted(LEAST - wanted.keys())]
    files, metadata = of_wheel(wheels[0])
    problems += differences("the wheel", files, wanted)
    if "licenses/LICENSE" not in metadata:
        problems.append("the wheel has no license")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = email.message_from_bytes(metadata["METADATA"])
    problems += metadata_problems(told, project, version)
    package, beside = of_sdist(sdists[0])
    problems += differences("the sdist", package, wanted)
    there = {name: data for name, data in beside.items() if not is_made(name)}
    return problems + differences("the sdist", there, {name: (root / name).read_bytes() for name in WITH_IT})


def build(root: Path, place: Path, *more: str) -> str:
    """Build sdist and, from that, wheel; what was said. Needs what pip can fetch of setuptools."""
    words = [sys.executable, "-m", "build", "--outdir", str(place), *more, str(root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    return done.stdout + done.stderr


if __name__ == "__main__":
    found = problems_of(Path(sys.argv[1]))
    print("\n".join(found) or "sdist and wheel hold the package, and nothing else")
    sys.exit(bool(found))
