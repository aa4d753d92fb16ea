"""The benchmark runs, and no operation is far from what the machine gives at this moment.

The bounds are ratios to probes of the same round. The echo has two speeds,
more than a factor of two apart, and a bound has to hold beside the faster
one: so most stand far below what is usual, to catch a lost fast path.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.operations import measure, table

# Operation -> the least acceptable ratio to its probe.
LEAST = {
    "kv get": 0.06,
    "kv put": 0.2,
    "kv put, 8 processes": 0.4,
    "kv put, pipelined": 4.0,
    "event append": 0.12,
    "event append, 8 processes, one log": 0.2,
    "cell read + cas": 0.1,
    "trace record, 2 tags": 0.06,
    "transaction: kv + event + cell + trace": 0.05,
    "transaction: read, modify, write": 0.1,
    "put, durability sync": 0.1,
}


@pytest.mark.timeout(300)
def test_every_operation_beside_its_probe(scratch: Path) -> None:
    """The best of some measurements counts: what a lost fast path costs is missing in each of them."""
    best: dict[str, float] = dict.fromkeys(LEAST, 0.0)
    rates = dict.fromkeys(("kv get", "kv put, pipelined"), 0.0)
    for number in range(5):
        document = measure(rounds=3, seconds=0.05, path=scratch / f"store-{number}")
        print(table(document))
        json.dumps(document)
        assert set(document["ratios"]) == set(LEAST)
        best = {name: max(ratio, document["ratios"][name]["median"]) for name, ratio in best.items()}
        rates = {name: max(rate, document["rates_per_s"][name]["max"]) for name, rate in rates.items()}
        slow = {name: (best[name], least) for name, least in LEAST.items() if best[name] < least}
        if not slow:
            break
    assert not slow, f"operation: (ratio to its probe, least): {slow}"
    # Two of the figures are so far above their bounds that they hold on any machine.
    assert rates["kv get"] >= 100_000 and rates["kv put, pipelined"] >= 50_000
