"""Swaps of compiled models over ranks of this machine, as a table of each way and backend.

    python benchmarks/sharded_backends.py [2 4]

For each way, number of ranks and backend: the largest difference from a fresh load into a whole model, and,
of all ranks together, recompiles, calls that ran compiled code or ran eagerly, and addresses that moved.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

import hotswap
from hotswap.bench.models import llama, write_adapter
from pytest_hotswap.ranks.pool import RankPool

HERE: dict[str, Any] = {}
RANKS = {"a": 4, "b": 8, "c": 2}
ORDER = ["b", None, "c", "a", "b"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
IDS = torch.arange(12).reshape(2, 6)


def hf_tp(base: Any, adapter: Any) -> Any:
    """transformers' tensor parallelism, then PEFT."""
    return _transformers(base, adapter, tp_size=torch.distributed.get_world_size())


def hf_fsdp(base: Any, adapter: Any) -> Any:
    """transformers' FSDP, then PEFT: the adapter is in no group."""
    return _transformers(base, adapter, fsdp_size=torch.distributed.get_world_size())


def _transformers(base: Any, adapter: Any, **size: int) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    cut = DistributedConfig(**size)
    model = AutoModelForCausalLM.from_pretrained(base, distributed_config=cut)
    return _prepared(PeftModel.from_pretrained(model.eval(), adapter))


def torch_tp(base: Any, adapter: Any) -> Any:
    """torch's parallelize_module, after PEFT, of each layer's MLP."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = _whole(base, adapter)
    plan: dict[str, Any] = {}
    for name in ("gate_proj", "up_proj"):
        plan |= {f"{name}.base_layer": ColwiseParallel()}
        plan |= {f"{name}.lora_B.default": ColwiseParallel()}
    plan |= {"down_proj.base_layer": RowwiseParallel()}
    plan |= {"down_proj.lora_A.default": RowwiseParallel()}
    for layer in model.base_model.model.model.layers:
        parallelize_module(layer.mlp, _mesh(), plan)
    return _prepared(model)


def fsdp(base: Any, adapter: Any) -> Any:
    """FSDP2 of each layer, LoRA weights left whole."""
    from torch.distributed.fsdp import fully_shard

    model = _prepared(_whole(base, adapter))
    lora = {p for name, p in model.named_parameters() if "lora_" in name}
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=_mesh(), ignored_params=lora)
    fully_shard(model, mesh=_mesh(), ignored_params=lora)
    hotswap.swap_together(model)
    return model


def _mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if "mesh" not in HERE:
        HERE["mesh"] = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return HERE["mesh"]


def _whole(base: Any, adapter: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


def _prepared(model: Any) -> Any:
    hotswap.prepare(model.eval(), target_rank=8)
    return model


WAYS = {each.__name__: each for each in (hf_tp, torch_tp, fsdp, hf_fsdp)}


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found.clone()


def swaps(way: str, backend: str, base: Any, fleet: dict[str, Any]) -> tuple[list[Any], list[int]]:
    """The outputs of this rank after each swap; recompiles, hits, eager calls and moved addresses."""
    from hotswap.engine.layout.registry import placement_of

    torch._dynamo.reset()
    model = WAYS[way](base, fleet["a"])
    called = torch.compile(model, backend=backend)
    _logits(called)
    _logits(called)
    targets = placement_of(model, "default").targets
    before = [target.data_ptr() for target in targets]
    outputs = []
    with hotswap.watch_compiles() as log:
        for name in ORDER:
            hotswap.swap(model, fleet[name] if name else None)
            outputs.append(_logits(called))
    targets = placement_of(model, "default").targets
    moved = sum(target.data_ptr() != at for target, at in zip(targets, before, strict=True))
    eager = sum(log.eager_misses.values())
    return outputs, [len(log.recompiles), log.total_hits, eager, moved]


def expected(base: Path, fleet: dict[str, Path]) -> list[torch.Tensor]:
    """What whole models give into which the adapters are loaded afresh."""
    from transformers import AutoModelForCausalLM

    return [
        _logits(_whole(base, fleet[n]) if n else AutoModelForCausalLM.from_pretrained(base).eval())
        for n in ORDER
    ]


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama(**SIZES).save_pretrained(folder / "base")
        fleet = {each: folder / each for each in RANKS}
        for seed, (each, rank) in enumerate(RANKS.items()):
            config = {"r": rank, "lora_alpha": 16, "target_modules": "all-linear"}
            generator = torch.Generator().manual_seed(seed)
            write_adapter(llama(**SIZES), fleet[each], generator, 0.2, **config)
        want = expected(folder / "base", fleet)
        print("| ranks | | backend | error | recompiles | compiled calls | eager | moved |")
        print("|---|---|---|---|---|---|---|---|")
        for count in [int(each) for each in sys.argv[1:]] or [2, 4]:
            pool = RankPool(count)
            for way in WAYS:
                for backend in ("eager", "inductor"):
                    found = pool(swaps, way, backend, folder / "base", fleet)
                    error = max(
                        float((output - whole).abs().max())
                        for outputs, _ in found
                        for output, whole in zip(outputs, want, strict=True)
                    )
                    told = [
                        sum(each) for each in zip(*(counts for _, counts in found), strict=True)
                    ]
                    cells = [count, way, backend, f"{error:.1e}", *told]
                    print("|", " | ".join(map(str, cells)), "|", flush=True)
            pool.close()


if __name__ == "__main__":
    main()
