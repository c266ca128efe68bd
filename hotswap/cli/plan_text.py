"""What ``hotswap plan`` prints beside the plan: who lacks what, memory, the curve, code to paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hotswap.adapters.names import families
from hotswap.adapters.plan import Cut, SwapPlan, size_text
from hotswap.cli.curve import bank_bytes, curve
from hotswap.findings import printable
from hotswap.report.text import table

_MOST = 12  # rows of a table


def sections(plan: SwapPlan) -> str:
    """The sections, one below the other."""
    parts = [_first(plan), _lacking(plan), _memory(plan), _curve(plan), _code(plan)]
    return "\n\n".join(part for part in parts if part)


def shared_memory(plan: SwapPlan, cuts: Mapping[str, Cut], devices: int) -> dict[str, Any]:
    """What each of some devices holds that share a model, as JSON has it."""
    cut = [name for name in plan.modules if name in cuts]
    return {
        "ranks": devices,
        "bytes_per_rank": plan.bytes_per_rank(cuts, devices),
        "bytes": plan.padded_bytes,
        "cut_by_outputs": [name for name in cut if cuts[name] == "outputs"],
        "cut_by_inputs": [name for name in cut if cuts[name] == "inputs"],
        "whole": [name for name in plan.modules if name not in cuts],
    }


def per_rank(found: Mapping[str, Any]) -> str:
    """The same for a person to read."""
    held, whole = size_text(found["bytes_per_rank"]), size_text(found["bytes"])
    lines = [f"Memory per rank ({found['ranks']} ranks)", f"  {held} of {whole}"]
    for what, key in (
        ("lora_B is cut", "cut_by_outputs"),
        ("lora_A is cut", "cut_by_inputs"),
        ("each rank has it whole", "whole"),
    ):
        if names := found[key]:
            more = ", ".join(name for name, _ in families((name, None) for name in names))
            lines.append(f"  {what}: {more if len(more) <= 90 else f'{more[:87]}...'}")
    return "\n".join(lines)


def _first(plan: SwapPlan) -> str:
    first = plan.first
    if first is None:
        return ""
    if len(plan.adapters) == 1:
        return f"Load first: {printable(first.name)}"
    if first.lacks:
        text = "no adapter has every module, so use hotswap.load(base_model, plan, adapter)"
        return f"Load first: {printable(first.name)} has most modules; {text}"
    return f"Load first: {printable(first.name)}, which has every module"


def _lacking(plan: SwapPlan) -> str:
    rows = [(a.name, ", ".join(a.lacks)) for a in plan.adapters if a.lacks]
    if not rows:
        return ""
    shown = [(name, lacks if len(lacks) <= 90 else f"{lacks[:87]}...") for name, lacks in rows]
    return _table(
        "Modules that an adapter lacks (they are as in the base model)", ("adapter", "lacks"), shown
    )


def _memory(plan: SwapPlan) -> str:
    """The model's adapter and a bank of the largest adapters, and the bytes over what these have as saved."""
    saved = sorted((adapter.bytes for adapter in plan.adapters), reverse=True)
    total = len(saved)
    counts = sorted({1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, total})
    rows = []
    for count in counts:
        if count <= total:
            unpadded = saved[0] + sum(saved[:count])
            padded = [bank_bytes(plan, count, uniform=uniform) for uniform in (False, True)]
            more = [f"{size_text(size)} ({_signed(size - unpadded)})" for size in padded]
            rows.append((str(count), size_text(unpadded), *more))
    head = ("in the bank", "as saved", "rank per module", f"rank {plan.target_rank} everywhere")
    return _table("Memory of the model's adapter and of a bank", head, rows)


def _curve(plan: SwapPlan) -> str:
    total = len(plan.adapters)
    rows = [
        (str(p.target_rank), size_text(p.fitted), size_text(p.uniform), f"{p.admitted} of {total}")
        for p in curve(plan)
    ]
    head = ("target rank", "rank per module", "uniform", "adapters admitted")
    return _table("Target rank against memory and adapters admitted", head, rows)


def _code(plan: SwapPlan) -> str:
    rank = plan.target_rank
    if not rank:
        return ""
    return "\n".join(
        [
            "Code",
            "  hotswap       model = hotswap.load(base_model, hotswap.SwapPlan.read('hotswap-plan.json'))",
            f"                or hotswap.prepare(model, target_rank={rank}), before torch.compile",
            f"  PEFT          prepare_model_for_compiled_hotswap(model, target_rank={rank})",
            f"  transformers  model.enable_peft_hotswap(target_rank={rank}), before load_adapter",
            f"  diffusers     pipe.enable_lora_hotswap(target_rank={rank}), before load_lora_weights",
            f"  vLLM          --enable-lora --max-lora-rank {_vllm(rank)}",
        ]
    )


def _vllm(rank: int) -> int:
    """The smallest rank of vLLM's list that holds it."""
    return next((r for r in (1, 8, 16, 32, 64, 128, 256, 320, 512) if r >= rank), rank)


def _signed(count: int) -> str:
    return f"{'-' if count < 0 else '+'}{size_text(abs(count))}"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    more = len(rows) - _MOST
    text = table(title, head, [*rows[: _MOST - 1], rows[-1]] if more > 0 else rows)
    return f"{text}\n  ({more} rows before the last are left out)" if more > 0 else text
