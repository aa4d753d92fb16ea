"""What the figures say: tables, the targets, pictures. `python -m bench.report FILE.json ...`

Collects the documents of the benchmarks into `results.json`, `results.md` and
pictures, in build/bench; of these `results.md` and one picture are kept in
bench/results. It measures nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import targets

RAW = Path(__file__).parents[1] / "build" / "bench"  # all of it, ignored by git
RESULTS = Path(__file__).parent / "results"
KEPT = ("results.md", "ratios.svg")
Document = Mapping[str, Any]


def number(value: float) -> str:
    """Three digits that matter, and no more before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def span(found: Mapping[str, Any]) -> str:
    """The median, and the lowest and highest round."""
    return f"{number(found['median'])} ({number(found['min'])} - {number(found['max'])})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """The first `words` columns are words, the others numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * words + "---:|" * (len(head) - words)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _names(document: Document) -> list[str]:
    """All that was measured in a document: ours, peers, probes."""
    found: dict[str, None] = {document["ours"]: None}
    for operation in document["operations"].values():
        found |= dict.fromkeys([*operation["subjects"], *operation["missing"]])
    return sorted(found, key=lambda name: (name != document["ours"], name.startswith("probe"), name))


def situation(busy: int) -> str:
    """What is beside the ones that are measured."""
    return f"beside {busy} busy" if busy else "quiet"


# Columns of a benchmark's table: what is in them of the entry of one store.
_COLUMNS: dict[str, Callable[[Document], Document | None]] = {
    "per second": lambda entry: entry["per_second"],
    "p50 µs": lambda entry: entry.get("latency_us", {}).get("p50"),
    "p95 µs": lambda entry: entry.get("latency_us", {}).get("p95"),
    "p99 µs": lambda entry: entry.get("latency_us", {}).get("p99"),
    "max µs": lambda entry: entry.get("latency_us", {}).get("max"),
    "CPU µs": lambda entry: entry.get("cpu_us"),
    "rate: inmem / this": lambda entry: entry.get("ours_to_this"),
    "CPU: inmem / this": lambda entry: entry.get("cpu ours_to_this"),
}
_OF_CALLS = ("p50 µs", "p95 µs", "p99 µs", "max µs", "CPU µs")  # a call that is timed by itself is no rate
_OF_ALL = tuple(name for name in _COLUMNS if name not in ("p95 µs", "max µs"))


def columns(document: Document) -> tuple[str, ...]:
    """The columns of a benchmark's table, after those that say what was measured."""
    return _OF_CALLS if document["name"] == "latency" else _OF_ALL


def measured_table(document: Document) -> str:
    """Each operation in each situation, a row for each store; what is as in the row above is left out."""
    names, chosen = _names(document), columns(document)
    rows, above = [], ("", "")
    for found in document["operations"].values():
        here = found["operation"], situation(found["busy"])
        for name in names:
            entry = found["subjects"].get(name)
            if entry is None and not found["missing"].get(name, "").startswith("failed"):
                continue
            head = ["" if here == above else here[0], "" if here == above else here[1], name]
            above = here
            if entry is None:
                rows.append([*head, "failed", *[""] * (len(chosen) - 1)])
                continue
            values = [_COLUMNS[column](entry) for column in chosen]
            rows.append([*head, *("" if value is None else number(value["median"]) for value in values)])
    return _table(["operation", "situation", "store", *chosen], rows, words=3)


def document_table(document: Document) -> str:
    """One benchmark: what was measured, what follows from it, and what there is to know about the stores."""
    parts = []
    if document["operations"]:
        parts.append(
            "Medians of the rounds. CPU: of one operation, summed over callers and processes of the store."
            f"\n\n{measured_table(document)}"
        )
    figures = document["figures"]
    derived = [[name, span(figures[name])] for name in document["derived"] if name in figures]
    if derived:
        parts.append(_table(["figure", "median (lowest - highest)"], derived))
    survives = [f"- {name}: {s['durability']}. {s['facts']}." for name, s in document["subjects"].items()]
    missing = [f"- without {name}: {why}" for name, why in document["skipped"].items()]
    reasons = dict.fromkeys(
        f"- {found['operation']}, {name}: {why}" for found in document["operations"].values()
        for name, why in found["missing"].items()
    )  # in each situation the same
    parts.append("\n".join(["What a commit survives:", *survives, *missing, *reasons,
                            *(f"- {note}" for note in document["notes"])]))
    if document["failures"]:
        parts.append("\n".join(["WRONG:", *(f"- {text}" for text in document["failures"])]))
    return "\n\n".join(parts)


def targets_table(documents: Mapping[str, Document]) -> str:
    """Every target with its figure."""
    rows = []
    for verdict in targets.judge(documents):
        target, figure = verdict.target, verdict.figure
        bounds = [f"{target.sign} {number(b)}" if b is not None else "" for b in (target.must, target.aim)]
        measured = span(figure) if figure else ""
        name = f"{target.document}: {target.figure}"
        rows.append([name, measured, target.unit, *bounds, verdict.word])
    return _table(["figure", "measured (lowest - highest)", "unit", "must", "aim", ""], rows)


def whole(documents: Mapping[str, Document]) -> str:
    """results.md."""
    some = next(iter(documents.values()))
    facts = some["machine"]
    lengths = sorted({(d["rounds"], d["seconds"]) for d in documents.values()})
    told = ", ".join(f"{rounds} rounds of {seconds:g} s" for rounds, seconds in lengths)
    loads = [d["load_average"]["before"][0] for d in documents.values()]
    head = (
        "# Results\n\n"
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, "
        f"{facts['system']}, Python {facts['python']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + f".\n{told}, {some['began']}. Load average when the benchmarks began: "
        f"{min(loads):.1f} to {max(loads):.1f}.\n\n"
        "Everything that is compared ran in the same round; a ratio is the median of the rounds' ratios, "
        "with the lowest and the highest. Beside so many busy: other processes compute without end meanwhile."
    )
    if any(d["quick"] for d in documents.values()):
        head += "\n\n**From short runs: good for seeing that everything works, not for judging.**"
    parts = [head, "## Targets\n\n" + targets_table(documents)]
    parts += [f"## {name}: {d['question']}\n\n{document_table(d)}" for name, d in documents.items()]
    return "\n\n".join(parts) + "\n"


def write(documents: Mapping[str, Document], place: Path, kept: Path | None = None) -> None:
    """results.json, results.md and the pictures; copies of KEPT go to `kept`."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(documents, indent=2) + "\n")
    (place / "results.md").write_text(whole(documents))
    try:
        from bench import plots
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        plots.draw(documents, place)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (place / name).exists():
                shutil.copyfile(place / name, kept / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect documents that were written with `--json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="of single benchmarks, or a results.json")
    parser.add_argument("--output", type=Path, default=RAW)
    parser.add_argument("--keep", action="store_true", help="copy the table and a picture to bench/results")
    found = parser.parse_args(arguments)
    documents: dict[str, Document] = {}
    for file in found.files:
        document = json.loads(file.read_text())
        documents |= {document["name"]: document} if "name" in document else document
    write(documents, found.output, RESULTS if found.keep else None)
    print(targets_table(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
