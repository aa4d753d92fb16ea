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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import targets

RAW = Path(__file__).parents[1] / "build" / "bench"  # all of it, ignored by git
RESULTS = Path(__file__).parent / "results"
KEPT = ("results.md", "ratios.svg")
Document = Mapping[str, Any]
_WITH_LATENCY = ("single", "sync")  # of ours, beside the rates


def number(value: float) -> str:
    """Three digits that matter, and no more before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def span(found: Mapping[str, Any]) -> str:
    """The median, and the lowest and highest round."""
    return f"{number(found['median'])} ({number(found['min'])} - {number(found['max'])})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _names(document: Document) -> list[str]:
    """All that was measured in a document: ours, peers, probes."""
    found: dict[str, None] = {document["ours"]: None}
    for operation in document["operations"].values():
        found |= dict.fromkeys([*operation["subjects"], *operation["missing"]])
    return sorted(found, key=lambda name: (name != document["ours"], name.startswith("probe"), name))


def document_table(document: Document) -> str:
    """One benchmark: each operation, everybody's rate, and how many times that inmem does."""
    parts = []
    names = _names(document)
    if document["operations"]:
        rows = []
        for operation, found in document["operations"].items():
            row = [operation]
            for name in names:
                entry = found["subjects"].get(name)
                if entry is None:
                    row.append("failed" if found["missing"].get(name, "").startswith("failed") else "-")
                    continue
                text = number(entry["per_second"]["median"])
                if "ours_to_this" in entry:
                    text += f" ({number(entry['ours_to_this']['median'])}x)"
                row.append(text)
            rows.append(row)
        parts.append("Per second, and in brackets how many times that is inmem's rate (median of rounds).\n\n"
                     + _table(["operation", *names], rows))
    latencies = [
        [operation, name, *(number(entry["latency_us"][p]["median"]) for p in ("p50", "p95", "p99", "max"))]
        for operation, found in document["operations"].items() for name, entry in found["subjects"].items()
        if "latency_us" in entry and (
            document["name"] == "latency" or (name == document["ours"] and document["name"] in _WITH_LATENCY)
        )
    ]  # fmt: skip
    if latencies:
        parts.append("Latency in µs (median of rounds).\n\n"
                     + _table(["operation", "store", "p50", "p95", "p99", "max"], latencies))
    figures = document["figures"]
    derived = [[name, span(figures[name])] for name in document["derived"] if name in figures]
    if derived:
        parts.append(_table(["figure", "median (lowest - highest)"], derived))
    if document["name"] == "latency":
        parts = parts[1:]  # a call that is timed by itself is no rate
    survives = [f"- {name}: {s['durability']}. {s['facts']}." for name, s in document["subjects"].items()]
    missing = [f"- without {name}: {why}" for name, why in document["skipped"].items()]
    reasons = [
        f"- {operation}, {name}: {why}" for operation, found in document["operations"].items()
        for name, why in found["missing"].items()
    ]  # fmt: skip
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
        "with the lowest and the highest."
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
