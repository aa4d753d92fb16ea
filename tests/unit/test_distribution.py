"""Sdist and wheel: what they hold, and that an environment which has nothing else works with them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from distributions import ROOT, WITH_IT, build, of_wheel, problems_of, source

EXHAUSTIVE = bool(os.environ.get("INMEM_EXHAUSTIVE"))
TIMEOUT_S = 110
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
UNREACHABLE = r"No matching distribution|ConnectionError|NewConnectionError|ResolutionImpossible.*setuptools"


def run(*command: object, code: int = 0, **variables: str) -> str:
    """In the root directory, so that only what is installed is found."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "INMEM_PATH")}
    done = subprocess.run(
        [*map(str, command)], cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S,
        env=kept | {"PYTHONWARNINGS": "error"} | variables,
    )
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    return told


def pip(*words: object) -> str:
    """What pip says; skips the test if it cannot fetch what it needs."""
    done = subprocess.run(
        [*PIP, *map(str, words)], cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S,
    )
    told = done.stdout + done.stderr
    if done.returncode and "--no-index" not in words and re.search(UNREACHABLE, told):
        pytest.skip(f"pip cannot fetch what this needs: {told[-200:]}")
    assert done.returncode == 0, told
    return told


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since building writes beside the sources; with what must not be in a distribution."""
    place = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "inmem", place / "inmem", ignore=shutil.ignore_patterns("__pycache__"))
    for name in WITH_IT:
        shutil.copy(ROOT / name, place)
    for name in ("tests", "workers", "bench"):
        (place / name).mkdir()
        (place / name / "__init__.py").touch()
    (place / "tests" / "test_one.py").touch()
    return place


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    pytest.importorskip("build", reason="there is no build: pip install build")
    place = tmp_path_factory.mktemp("dist")
    told = build(checkout, place)
    if not list(place.glob("*.whl")) and re.search(UNREACHABLE, told):
        pytest.skip(f"nothing can be built without what pip fetches for that: {told[-200:]}")
    assert re.search(r"^Successfully built inmem-\S+\.tar\.gz and inmem-\S+\.whl", told, re.MULTILINE), told
    return place


@pytest.fixture(scope="module")
def house(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of all that the command needs, but for inmem itself; and of setuptools."""
    place = tmp_path_factory.mktemp("house")
    (wheel,) = built.glob("*.whl")
    pip("download", "--quiet", "--dest", place, "setuptools>=77", f"{wheel}[cli]")
    for copy in place.glob("inmem-*"):
        copy.unlink()
    return place


def environment(place: Path) -> Path:
    """A fresh one; its interpreter."""
    venv.create(place, with_pip=False)
    return place / "bin" / "python"


def install(python: Path, house: Path, *what: object) -> None:
    """Install without an index."""
    pip("--python", python, "install", "--no-compile", "--no-index", "--find-links", house, *what)


def test_they_hold_the_package_and_nothing_else(built: Path, checkout: Path) -> None:
    """The wheel was built from the sdist: so that builds the same files."""
    assert problems_of(built, checkout) == []


@pytest.mark.skipif(not EXHAUSTIVE, reason="INMEM_EXHAUSTIVE is not set: another build")
def test_a_wheel_of_the_checkout_is_the_one_of_the_sdist(
    built: Path, checkout: Path, tmp_path: Path
) -> None:
    assert "Successfully built" in build(checkout, tmp_path, "--wheel")
    assert of_wheel(next(built.glob("*.whl"))) == of_wheel(next(tmp_path.glob("*.whl")))


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: [files.pop(each) for each in list(files) if each.endswith(name)] and None


def add(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({name: b""})


def change(name: str, old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def changed(files: dict[str, bytes]) -> None:
        for each in [each for each in files if each.endswith(name)]:
            assert old in files[each]
            files[each] = files[each].replace(old, new)

    return changed


@pytest.mark.parametrize(
    ("of", "damage", "problem"),
    [
        ("whl", without("py.typed"), "the wheel lacks inmem/py.typed"),
        ("whl", without("web/assets/app.js"), "the wheel lacks inmem/web/assets/app.js"),
        ("whl", without("report.html"), "the wheel lacks inmem/cli/report.html"),
        ("whl", add("tests/test_one.py"), "the wheel has tests/test_one.py"),
        ("whl", add("inmem/stale.py"), "the wheel has inmem/stale.py"),
        ("whl", change("inmem/keys.py", b"def ", b"def  "), "the wheel has another inmem/keys.py"),
        ("whl", without("licenses/LICENSE"), "the wheel has no license"),
        ("whl", change("METADATA", b"\nVersion: ", b"\nVersion: 9"), "Version is"),
        ("whl", change("METADATA", b"-Expression: Apache-2.0", b"-Expression: MIT"), "License-Expression is"),
        ("tar.gz", without("py.typed"), "the sdist lacks inmem/py.typed"),
        ("tar.gz", without("pyproject.toml"), "the sdist lacks pyproject.toml"),
        ("tar.gz", add("inmem-x/tests/test_one.py"), "the sdist has tests/test_one.py"),
    ],
)
def test_what_is_wrong_with_them_is_found(
    built: Path, checkout: Path, tmp_path: Path, of: str, damage: Callable[[dict[str, bytes]], None],
    problem: str,
) -> None:
    for each in built.iterdir():
        shutil.copy(each, tmp_path)
    (archive,) = tmp_path.glob(f"*.{of}")
    if of == "whl":
        with zipfile.ZipFile(archive) as wheel:
            files = {name: wheel.read(name) for name in wheel.namelist()}
        damage(files)
        with zipfile.ZipFile(archive, "w") as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
    else:
        with tarfile.open(archive) as sdist:
            members = [(each, sdist.extractfile(each)) for each in sdist.getmembers() if each.isfile()]
            files = {each.name: file.read() for each, file in members if file is not None}
        damage(files)
        with tarfile.open(archive, "w:gz") as sdist:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                sdist.addfile(info, io.BytesIO(data))
    found = problems_of(tmp_path, checkout)
    assert len(found) == 1 and found[0].startswith(problem), found


def test_the_wheel_works_in_a_fresh_environment(built: Path, house: Path, tmp_path: Path) -> None:
    """The library alone first, then the command and the demonstration, all without an index."""
    python = environment(tmp_path / "venv")
    (wheel,) = built.glob("*.whl")
    install(python, house, wheel)
    program = (
        "import inmem\n"
        "with inmem.open() as db:\n"
        "    db.events.append('r', 'planned', {'n': 1})\n"
        "    print(inmem.__version__, inmem.__file__, db.events.verify_chain('r').length)\n"
    )
    version, file, length = run(python, "-c", program).split()
    assert (version, length) == (re.findall(r"inmem-([^-]+)-py3", wheel.name)[0], "1")
    assert file.startswith(str(tmp_path))
    missing = "inmem: the command needs more than the library: pip install 'inmem[cli]'\n"
    for command in ([python, "-m", "inmem.demo"], [python.parent / "inmem", "demo"]):
        assert run(*command, code=2) == missing
    install(python, house, f"{wheel}[cli]")
    assert run(python.parent / "inmem", "--version") == f"inmem {version}\n"
    assert "inmem[ui]" in run(python, "-m", "inmem.demo", "--ui", code=2)
    told = run(python, "-m", "inmem.demo", "--seconds", "1", "--quiet", NO_COLOR="1")
    assert re.fullmatch(r"All of it holds: .* reviewer-[12], writer, worker-\d\.\n", told), told


@pytest.mark.skipif(not EXHAUSTIVE, reason="INMEM_EXHAUSTIVE is not set: it builds once more")
def test_the_sdist_is_installed_without_an_index(built: Path, house: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv")
    install(python, house, next(built.glob("*.tar.gz")))
    where = run(python, "-c", "import inmem; print(inmem.__path__[0])").strip()
    assert source(Path(where).parent).keys() == source(ROOT).keys()


def test_the_classifiers_are_the_versions_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    assert project["requires-python"] == f">=3.{stated[0]}"
    assert [int(each) for each in stated] == [*range(int(stated[0]), int(stated[-1]) + 1)]
    assert "urls" not in project or all(url.startswith("https://") for url in project["urls"].values())
