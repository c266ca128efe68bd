"""What a run of hotswap verify gathers, made up: a fleet of any size, in no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hotswap.report.laws import LAWS

FINDING = {
    "where": "fleet/broken",
    "code": "HSW005",
    "message": "the file is <b>truncated</b>",
    "remedy": "save it again",
    "name": "weights-invalid",
}


def record(law: str | None, outcome: str = "passed", **more: Any) -> dict[str, Any]:
    role = more.get("role", "law")
    line = {"nodeid": f"suite.py::test_{role}_{law}", "law": law, "role": role, "adapter": None}
    return {**line, "outcome": outcome, "message": None, "seconds": 0.1, **more}


def adapter(name: str, rank: int = 8, *findings: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"fleet/{name}",
        "ranks": [rank],
        "alphas": [2.0 * rank],
        "modules": 2,
        "bytes": rank * 1000,
        "digest": f"{hash(name) % 2**64:064x}",
        "module_ranks": {"layers.0.q_proj": rank, "layers.10.q_proj": rank},
        "findings": list(findings),
        "warnings": [],
    }


def records(names: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a run in which everything passed."""
    lines = [record(law, role=role) for law in LAWS for role in ("law", "control")]
    for number, name in enumerate(names):
        times = json.dumps({name: [0.001 * (number + 1)] * 3})
        lines += [
            record("swap-equals-load", adapter=name, max_error=1e-7 * (number + 1), tolerance=1e-4),
            record("swap-has-effect", adapter=name, effect=0.5),
            record("zero-recompiles", adapter=name, recompiles=0, hits=3, swaps=2),
            record("swap-in-place", adapter=name, moved=0, swap_times=times),
        ]
    compiled = {"region": "Llama", "cause": "swap", "seconds": 2.0}
    first = [{"kind": "first", "sentence": "", **compiled}]
    again = [{"kind": "recompile", "sentence": "the rank changed from 16 to 4", **compiled}]
    lines[0] |= {"started": 100.0, "compiles_in_setup": json.dumps(first)}
    lines[0] |= {"environment": json.dumps({"torch": "2.13.0", "device": "cpu"})}
    lines[-1] |= {"started": 110.0, "compiles_in_call": json.dumps(again), "role": "control"}
    return lines


def gathered(names: Sequence[str] = ("a", "b", "c"), **more: Any) -> dict[str, Any]:
    rank = 4 * len(names)
    sizes = {"unpadded": 1000, "padded": 4000 * len(names), "uniform": 8000 * len(names)}
    points = [
        {"rank": r, "per_module_bytes": r * 1000, "uniform_bytes": r * 2000, "admitted": r // 4}
        for r in range(1, rank + 1, max(1, rank // 40))
    ]
    samples = {
        series: [scale * (1 + n / 100) for n in range(50)]
        for series, scale in (("hotswap, swap", 1e-3), ("PEFT, swap", 3e-3))
    }
    row = {"row": "no compile", "first_inference": 1.0, "swap": 0.01, "slowest_swap": 0.02}
    rows = [{**row, "swaps": 4, "recompiles": None, "error": None}]
    fleet = [adapter(name, 4 * (n + 1)) for n, name in enumerate(names)]
    return {
        "request": {"base": "base", "backend": "eager"},
        "plan": {"target_rank": rank, "bytes": sizes},
        "curve": points,
        "fleet": {"adapters": len(fleet), "digest": "3a" * 32},
        "adapters": fleet,
        "tests": records(names),
        "exitstatus": 0,
        "interrupted": False,
        "timing": {"backend": "eager", "rows": rows, "samples": samples},
        "warnings": [],
        "shards": [],
        **more,
    }
