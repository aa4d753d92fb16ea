"""Pictures of the figures, as SVG. Needs matplotlib."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.report import situation

pyplot.rcParams["svg.fonttype"] = "none"  # text as text: a picture is kept in git, and outlines double it
Document = Mapping[str, Any]
_WIDTH, _HEIGHT = 10.0, 5.5
# A store has one colour in all pictures.
_COLOURS = {
    name: f"C{number}" for number, name in enumerate(
        ("inmem", "redis", "sqlite", "stratadb", "diskcache", "manager", "redis no log",
         "stratadb in process", "inmem before", "inmem, a key a field", "inmem, transactions")
    )
}  # fmt: skip


def draw(documents: Mapping[str, Document], place: Path) -> list[Path]:
    """All pictures that the documents have the figures for; the files."""
    made = []
    for name, picture in {
        "ratios": _ratios, "processes": _processes, "latency": _latency, "growth": _growth, "ycsb": _ycsb,
    }.items():  # fmt: skip
        figure = pyplot.figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        try:
            if picture(figure, documents):
                made.append(place / f"{name}.svg")
                figure.savefig(made[-1], metadata={"Date": None})
        finally:
            pyplot.close(figure)
    return made


def _stores(document: Document, operations: list[str]) -> list[str]:
    found = {name for op in operations for name in document["operations"][op]["subjects"]}
    return sorted(
        (name for name in found if not name.startswith("probe")), key=lambda n: (n != document["ours"], n)
    )


def _ratio_points(figure: Any, document: Document, title: str) -> bool:
    """A panel for each situation; at each operation a point for each peer, and a line from round to round."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for entry in document["operations"].values():
        found.setdefault(entry["busy"], {})[entry["operation"]] = entry["subjects"]
    stores = [name for name in _stores(document, [*document["operations"]]) if name != document["ours"]]
    if not stores:
        return False
    groups = [*dict.fromkeys(entry["operation"] for entry in document["operations"].values())]
    situations = sorted(found)
    figure.set_size_inches(_WIDTH, _HEIGHT / 2 * (1 + len(situations)))
    grid = figure.subplots(len(situations), 1, sharex=True, sharey=True, squeeze=False)
    for axes, busy in zip(grid.flat, situations, strict=True):
        for number, store in enumerate(stores):
            points = []
            for group, operation in enumerate(groups):
                ratio = found[busy].get(operation, {}).get(store, {}).get("ours_to_this")
                if ratio:
                    at = group + 0.8 * ((number + 0.5) / len(stores) - 0.5)
                    points.append((at, ratio["median"], ratio["min"], ratio["max"]))
            if points:
                # All lines of a store as one curve with gaps, which makes a far smaller file.
                lines = [(at, y) for at, _, *span in points for y in (*span, math.nan)]
                axes.plot(*zip(*lines, strict=True), color=_COLOURS.get(store), linewidth=1.2)
                places, medians, *_ = zip(*points, strict=True)
                axes.plot(places, medians, "o", markersize=4, label=store, color=_COLOURS.get(store))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.grid(axis="y", alpha=0.3)
        axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right", fontsize=8)
        axes.set_ylabel("times as fast as the peer", fontsize=8)
        axes.set_title(situation(busy), fontsize=9)
    grid.flat[0].legend(fontsize=8, ncols=len(stores))
    figure.suptitle(title)
    return True


def _ratios(figure: Any, documents: Mapping[str, Document]) -> bool:
    return "single" in documents and _ratio_points(
        figure, documents["single"], "inmem beside its peers, one client (above 1: inmem is faster)"
    )


def _ycsb(figure: Any, documents: Mapping[str, Document]) -> bool:
    return "ycsb" in documents and _ratio_points(
        figure, documents["ycsb"], "YCSB, eight processes (above 1: inmem is faster)"
    )


def _curves(document: Document, pattern: str) -> dict[str, list[tuple[float, Mapping[str, float]]]]:
    """Store -> (what the pattern's number says, rate) in order."""
    curves: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    for operation, found in document["operations"].items():
        matched = re.fullmatch(pattern, operation)
        if matched is not None:
            for store, entry in found["subjects"].items():
                if not store.startswith("probe"):
                    curves.setdefault(store, []).append((float(matched[1]), entry["per_second"]))
    return {store: sorted(points, key=lambda point: point[0]) for store, points in sorted(curves.items())}


def _lines(axes: Any, curves: Mapping[str, Any], base: int) -> None:
    for store, points in curves.items():
        at, rates = [x for x, _ in points], [y for _, y in points]
        axes.plot(at, [y["median"] for y in rates], "o-", label=store, color=_COLOURS.get(store))
        axes.fill_between(at, [y["min"] for y in rates], [y["max"] for y in rates], alpha=0.15,
                          color=_COLOURS.get(store))
    axes.set_xscale("log", base=base)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _processes(figure: Any, documents: Mapping[str, Document]) -> bool:
    if "processes" not in documents:
        return False
    for axes, operation in zip(figure.subplots(1, 2), ("kv get", "kv put"), strict=True):
        _lines(axes, _curves(documents["processes"], rf"{operation}, (\d+) process(?:es)?"), 2)
        axes.set_title(f"{operation}, all processes together")
        axes.set_xlabel("processes")
        axes.set_ylabel("per second")
    return True


def _growth(figure: Any, documents: Mapping[str, Document]) -> bool:
    if "growth" not in documents:
        return False
    for axes, operation in zip(figure.subplots(1, 2), ("kv get", "kv put"), strict=True):
        curves = _curves(documents["growth"], rf"{operation}, 10\^(\d+) keys")
        _lines(axes, {name: [(10**x, y) for x, y in points] for name, points in curves.items()}, 10)
        axes.set_ylim(bottom=1)
        axes.set_title(f"{operation} of random keys, one client")
        axes.set_xlabel("keys in the store")
        axes.set_ylabel("per second")
    return True


def _latency(figure: Any, documents: Mapping[str, Document]) -> bool:
    if "latency" not in documents:
        return False
    document = documents["latency"]
    operations = [*document["operations"]]
    grid = figure.subplots(2, (len(operations) + 1) // 2, squeeze=False)
    quantiles = ["p50", "p95", "p99", "max"]
    for axes, operation in zip(grid.T.flat, operations, strict=False):
        for store in _stores(document, [operation]):
            latency = document["operations"][operation]["subjects"][store].get("latency_us")
            if latency:
                medians = [latency[q]["median"] for q in quantiles]
                axes.plot(quantiles, medians, "o-", label=store, markersize=3, color=_COLOURS.get(store))
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.set_title(operation, fontsize=9)
        axes.set_ylabel("µs", fontsize=8)
    grid.flat[0].legend(fontsize=7)
    return True
