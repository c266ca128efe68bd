"""What a rank does: models cut over a mesh, swaps, faults. Each function is called on every rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

import hotswap
from pytest_hotswap.ranks.pool import PRELOADED
from tests.support.forks import COMPILERS
from tests.support.models import seeded

PRELOADED += [__name__, *COMPILERS]  # a rank then starts, and compiles, at once
HERE: dict[str, Any] = {}
"""What this rank has: its model, and what it calls."""

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A linear layer cut by its outputs, one cut by its inputs, and one that every rank has."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.down(torch.tanh(self.up(value)))))


NAMES = ["up", "down", "last"]


def net() -> Any:
    return seeded(Net)


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    if "mesh" not in HERE:
        HERE["mesh"] = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return HERE["mesh"]


def tensor_parallel(folder: Path) -> PeftModel:
    """An adapter in a model that torch's parallelize_module cuts."""
    model = PeftModel.from_pretrained(net(), folder).eval()
    cut(model)
    return model


def cut(model: Any, *, by_rank: bool = False, name: str = "default") -> None:
    """Cut a model by torch's parallelize_module; of another adapter, only that."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    inside = model.base_model.model
    if by_rank:
        plan: dict[str, Any] = {"up.lora_A.default": ColwiseParallel()}
        plan |= {"up.lora_B.default": RowwiseParallel()}
        parallelize_module(inside, mesh(), plan)
        return
    plan = {f"up.lora_B.{name}": ColwiseParallel(), f"down.lora_A.{name}": RowwiseParallel()}
    if name == "default":
        plan |= {"up.base_layer": ColwiseParallel(), "down.base_layer": RowwiseParallel()}
    parallelize_module(inside, mesh(), plan)


def replica(folder: Path) -> PeftModel:
    """An adapter in a model that every rank has whole."""
    return PeftModel.from_pretrained(net(), folder).eval()


def bring_up(kind: str, folder: Path, backend: str | None = None, timeout: float = 30) -> None:
    """Load, prepare and compile."""
    model = {"tensor parallel": tensor_parallel, "replica": replica}[kind](folder)
    hotswap.prepare(model, target_rank=8)
    if kind == "replica" or timeout != 30:
        hotswap.swap_together(model, timeout=timeout)
    HERE["model"] = model
    HERE["run"] = model if backend is None else torch.compile(model, backend=backend)


@torch.no_grad()
def run() -> torch.Tensor:
    value: torch.Tensor = HERE["run"](X)
    return value.clone()


def swap(folder: Path | None) -> Any:
    report = hotswap.swap(HERE["model"], folder)
    return report.digest, report.path, hotswap.active(HERE["model"])


def bits() -> dict[str, torch.Tensor]:
    """A copy of what this rank holds of every parameter and buffer."""
    model = HERE["model"]
    found = [*model.named_parameters(), *model.named_buffers()]
    return {n: (t.to_local() if hasattr(t, "to_local") else t).detach().clone() for n, t in found}


def watched_swaps(
    folders: list[Path | None], run: Callable[[], torch.Tensor] = run
) -> tuple[int, int, Any, bool, list[torch.Tensor]]:
    """Swap and run, once each: recompiles, hits, eager misses, whether every address stayed; the outputs."""
    model, before, outputs = HERE["model"], addresses(), []
    run()
    run()
    with hotswap.watch_compiles() as log:
        for folder in folders:
            hotswap.swap(model, folder)
            outputs.append(run())
    same = addresses() == before
    return len(log.recompiles), log.total_hits, log.eager_misses, same, outputs


def addresses() -> list[int]:
    from hotswap.engine.layout.registry import placement_of

    return [target.data_ptr() for target in placement_of(HERE["model"], "default").targets]


def broken_step(step: str, fault: str, late: float) -> None:
    """Let this rank fail once, at a step of its next swap: raise, be late, or die."""
    import os
    import signal
    import time

    from hotswap.engine import mesh, swap
    from hotswap.engine.layout.arena import Arena
    from hotswap.engine.layout.placement import Placement

    places: dict[str, tuple[Any, str]] = {
        "read": (swap, "read_parts"),
        "vote": (mesh.Ranks, "say"),
        "before": (Placement, "put"),
        "middle": (Arena, "copy"),
        "after": (mesh.Ranks, "say"),
        "report": (swap, "SwapReport"),
    }
    owner, name = places[step]
    original = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if (step, "begin") == ("after", str(args[1]).rpartition("/")[2]):
            return original(*args, **kwargs)
        arena = args[0]
        if step == "middle" and arena is not arena_here():
            return original(*args, **kwargs)
        setattr(owner, name, original)
        if step == "middle":
            for device, buffer in arena.buffers.items():
                half = buffer.numel() // 2
                buffer[:half].copy_(args[1].buffers[device][:half])
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "late":
            time.sleep(late)
        else:
            raise OSError(f"injected at {step}")
        return original(*args, **kwargs)

    setattr(owner, name, failing)


def arena_here() -> Any:
    from hotswap.engine.layout.registry import placement_of

    return placement_of(HERE["model"], "default").arena


def held() -> int:
    """The bytes that this rank holds for its adapter."""
    from hotswap.engine.layout.registry import placement_of

    return placement_of(HERE["model"], "default").layout.bytes


def patience(seconds: float) -> None:
    """How long this rank waits for the others."""
    from hotswap.engine import mesh
    from hotswap.engine.layout.registry import entry_of

    mesh._joined[entry_of(HERE["model"])].timeout = seconds


def faulty_swap(
    patience_: float,
    folder: Any,
    fault: tuple[str, str, float] | None,
    change: Callable[[Any], Any] | None = None,
) -> tuple[Any, bool, Any]:
    """Try a swap of which some rank fails: what it raised, whether the rank is as before, what is active."""
    patience(patience_)
    before, then = bits(), hotswap.active(HERE["model"])
    if fault is not None:
        broken_step(*fault)
    raised: Any = None
    try:
        (swap if change is None else change)(folder)
    except Exception as error:
        raised = type(error).__name__, str(error), getattr(error, "rank", None)
    now = bits()
    same = all(torch.equal(value, now[name]) for name, value in before.items())
    patience(30)
    return raised, same and hotswap.active(HERE["model"]) == then, hotswap.active(HERE["model"])


def fully_shard_after(kind: str, folder: Path) -> None:
    """FSDP2 around an adapter: which weights it cuts, and whether before or after prepare()."""
    from torch.distributed.fsdp import fully_shard

    HERE.clear()
    if kind == "base first":  # as transformers' fsdp_size does, of which PEFT knows nothing
        base = net()
        for layer in (base.up, base.down, base.last):
            fully_shard(layer, mesh=mesh())
        fully_shard(base, mesh=mesh())
        HERE["model"] = HERE["run"] = PeftModel.from_pretrained(base, folder).eval()
        return
    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(net(), folder).eval()
    if "prepared" in kind:
        hotswap.prepare(model, target_rank=8)
    whole = {p for name, p in model.named_parameters() if "lora_" in name and "whole" in kind}
    inside = model.base_model.model
    if "compiled" in kind:  # what FSDP hooks on then is outside of the compiled code
        torch._dynamo.reset()
        for name in NAMES:
            setattr(inside, name, torch.compile(getattr(inside, name), fullgraph=True))
    if "root" not in kind:
        for name in NAMES:
            fully_shard(getattr(inside, name), mesh=mesh(), ignored_params=whole)
    fully_shard(model, mesh=mesh(), ignored_params=whole)


def prepare() -> None:
    hotswap.prepare(HERE["model"], target_rank=8)


def reshard() -> None:
    for module in HERE["model"].modules():
        if hasattr(module, "reshard"):
            module.reshard()


def state_dict() -> None:
    if hotswap.active(HERE["model"]) is not None:  # else there is nothing to save
        HERE["model"].state_dict()


def bank_of(fleet: dict[str, Path]) -> list[str]:
    HERE["bank"] = hotswap.AdapterBank(HERE["model"])
    return [HERE["bank"].add(name, folder) for name, folder in fleet.items()]


def use(name: str) -> torch.Tensor:
    with HERE["bank"].using(name):
        return run()


def set_scale(scale: float) -> None:
    hotswap.set_scale(HERE["model"], scale)


def save(folder: Path) -> Path:
    where = folder / str(torch.distributed.get_rank())
    HERE["model"].save_pretrained(where)
    return where


def compile_it(backend: str) -> None:
    torch._dynamo.reset()
    HERE["run"] = torch.compile(HERE["model"], backend=backend)


def llama(**options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(HERE["base"], **options).eval()


def llama_base(folder: Path) -> None:
    HERE["base"] = folder


def bring_up_llama(adapter: Path | None, plan: Any = None, tp_plan: str | None = None) -> None:
    """transformers' tensor parallelism, then PEFT; with a plan by hotswap.load."""
    from transformers.distributed import DistributedConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    count = torch.distributed.get_world_size()
    cut = DistributedConfig(tp_plan=tp_plan) if tp_plan else DistributedConfig(tp_size=count)
    base = llama(distributed_config=cut)
    if plan is not None:
        model = hotswap.load(base, plan, adapter)
    else:
        model = PeftModel.from_pretrained(base, adapter).eval()
        hotswap.prepare(model, target_rank=8)
    HERE["model"] = HERE["run"] = model


def bring_up_llama_fsdp(adapter: Path) -> None:
    """transformers' FSDP, then PEFT: the adapter is in no group."""
    from transformers.distributed import DistributedConfig

    count = torch.distributed.get_world_size()
    base = llama(distributed_config=DistributedConfig(fsdp_size=count))
    HERE["model"] = HERE["run"] = PeftModel.from_pretrained(base, adapter).eval()
    hotswap.prepare(HERE["model"], target_rank=8)


def refused_loads(adapters: list[Path]) -> tuple[list[str], bool]:
    """What hotswap.load raises for each adapter, and whether the base model computes what it did."""
    from transformers.distributed import DistributedConfig

    count = torch.distributed.get_world_size()
    HERE["run"] = base = llama(distributed_config=DistributedConfig(tp_size=count))
    before, told = generate(), []
    for adapter in adapters:
        try:
            hotswap.load(base, hotswap.plan([adapter]), adapter)
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    return told, torch.equal(generate(), before)


def prepare_head() -> None:
    """LoRA that PEFT makes of an output layer whose parts transformers gathers."""
    from peft import LoraConfig, get_peft_model
    from transformers.distributed import DistributedConfig

    count = torch.distributed.get_world_size()
    base = llama(distributed_config=DistributedConfig(tp_size=count))
    hotswap.prepare(
        get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"])), target_rank=8
    )


IDS = torch.arange(12).reshape(2, 6)


@torch.no_grad()
def generate() -> torch.Tensor:
    value: torch.Tensor = HERE["run"](input_ids=IDS, use_cache=False).logits
    return value.clone()


def whole_state() -> dict[str, torch.Tensor]:
    """What PEFT saves of the adapter in place, with its shards put together."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(HERE["model"])
    return {n: (v.full_tensor() if hasattr(v, "full_tensor") else v) for n, v in state.items()}


def parameters() -> dict[str, int]:
    return {name: id(value) for name, value in HERE["model"].named_parameters()}


def prepared_again(rank: int) -> bool:
    """Prepare once more; tell whether every parameter is the object that it was."""
    before = parameters()
    kept = list(HERE["model"].parameters())
    hotswap.prepare(HERE["model"], target_rank=rank)
    return bool(kept) and parameters() == before


def bring_up_two(folder: Path, other: Path) -> None:
    """A model that is cut and has adapters under two names."""
    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(net(), folder).eval()
    model.load_adapter(other, "other")
    cut(model)
    cut(model, name="other")
    hotswap.prepare(model, target_rank=8)


def change_name(verb: str, value: Any, name: str) -> None:
    getattr(hotswap, verb)(HERE["model"], value, adapter_name=name)


def interrupted_preparation(folder: Path) -> tuple[bool, str]:
    """Prepare, and fail when everything is in place: whether all is as before, and what was raised."""
    from hotswap.engine import prepare as module

    HERE["model"] = HERE["run"] = tensor_parallel(folder)
    before, values, kept = parameters(), bits(), list(HERE["model"].parameters())
    original = module.join_meshes

    def fail(*_: Any) -> None:
        raise OSError("injected")

    module.join_meshes = fail
    try:
        hotswap.prepare(HERE["model"], target_rank=8)
    except OSError as error:
        raised = type(error).__name__
    finally:
        module.join_meshes = original
    now = bits()
    same = all(torch.equal(value, now[name]) for name, value in values.items())
    return bool(kept) and same and parameters() == before, raised


class OddNet(Net):
    """A width of 5, which no mesh divides; of four ranks the last has nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 5)
        self.down = nn.Linear(5, 8)


def odd_net() -> Any:
    return seeded(OddNet)


def bring_up_odd(folder: Path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(odd_net(), folder).eval()
    inside = model.base_model.model
    for linear, dim in ((inside.up.lora_B["default"], 0), (inside.down.lora_A["default"], 1)):
        whole = distribute_tensor(linear.weight.detach(), mesh(), [Shard(dim)])
        linear.weight = nn.Parameter(whole, requires_grad=False)
        linear.forward = _gathered.__get__(linear)
    hotswap.prepare(model, target_rank=8)


def _gathered(self: Any, value: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(value, self.weight.full_tensor())


def refused_preparation(what: str, folder: Path) -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    if what in ("dora", "saved"):
        HERE["model"] = model = PeftModel.from_pretrained(net(), folder).eval()
        inside = model.base_model.model
        held = inside.up.base_layer if what == "dora" else inside.last.modules_to_save["default"]
        held.weight = nn.Parameter(distribute_tensor(held.weight.detach(), mesh(), [Shard(0)]))
        if what == "saved":
            held.weight.requires_grad_(False)
    else:
        HERE["model"] = model = PeftModel.from_pretrained(net(), folder).eval()
        a = model.base_model.model.up.lora_A["default"]
        whole = DTensor.from_local(a.weight.detach(), mesh(), [Partial()], run_check=False)
        a.weight = nn.Parameter(whole, requires_grad=False)
    hotswap.prepare(model, target_rank=8)


def swap_shards() -> None:
    from peft import LoraConfig

    state = {
        name.replace(".default", ""): value.detach()
        for name, value in HERE["model"].named_parameters()
        if "lora_" in name
    }
    hotswap.swap(HERE["model"], state, config=LoraConfig(r=8, target_modules=NAMES))


def swap_whole(folder: Path) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    hotswap.swap(HERE["model"], state, config=LoraConfig.from_pretrained(folder))


def remember_state() -> None:
    HERE["state"] = {n: v.clone() for n, v in HERE["model"].state_dict().items() if "lora_" in n}


def load_remembered() -> None:
    HERE["model"].load_state_dict(HERE["state"], strict=False)


def combine() -> None:
    HERE["model"].add_weighted_adapter(["default"], [0.5], "both", combination_type="linear")


def begin_use(name: str) -> None:
    HERE["using"] = HERE["bank"].using(name)
    HERE["using"].__enter__()


def swap_while_used(folder: Path, used: bool) -> None:
    if not used:
        HERE["using"].__exit__()
    try:
        hotswap.swap(HERE["model"], folder)
    finally:
        HERE["using"].__exit__()


def bring_up_with_store(folder: Path, path: str) -> None:
    import torch.distributed as dist

    HERE["model"] = HERE["run"] = model = replica(folder)
    hotswap.prepare(model, target_rank=8)
    count, rank = dist.get_world_size(), dist.get_rank()
    store = dist.FileStore(path, count)
    hotswap.swap_together(model, store=store, rank=rank, world_size=count, timeout=20)


def bring_up_ddp(folder: Path) -> None:
    from torch.nn.parallel import DistributedDataParallel

    model = replica(folder)
    hotswap.prepare(model, target_rank=8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    HERE["model"] = HERE["run"] = DistributedDataParallel(model).eval()
    hotswap.swap_together(HERE["model"])


class Outer(nn.Module):
    """A module of one's own around a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: torch.Tensor) -> Any:
        return self.inner(value)


def wrapped(kind: str, folder: Path, prepared: bool) -> None:
    """FSDP around everything, after a forward: what a module shows then is whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    model = PeftModel.from_pretrained(net(), folder).eval()
    if prepared:
        hotswap.prepare(model, target_rank=8)
    whole = {p for name, p in model.named_parameters() if "lora_" in name and "whole" in kind}
    outer: Any
    if "FSDP2" in kind:
        outer = Outer(model)
        fully_shard(outer, mesh=mesh(), ignored_params=whole)
    else:
        own = "own" in kind
        outer = FullyShardedDataParallel(model, use_orig_params=own, device_id=torch.device("cpu"))
    HERE["model"] = HERE["run"] = outer
    run()


def patched_swaps(folders: list[Path]) -> list[torch.Tensor]:
    """PEFT's own functions over the engine, in a model that transformers has cut."""
    from peft.utils import hotswap as functions
    from transformers.distributed import DistributedConfig

    count = torch.distributed.get_world_size()
    base = llama(distributed_config=DistributedConfig(tp_size=count))
    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(base, folders[0]).eval()
    outputs = []
    with hotswap.patch_peft():
        functions.prepare_model_for_compiled_hotswap(model, target_rank=8)
        for folder in folders:
            functions.hotswap_adapter(model, str(folder), "default")
            outputs.append(generate())
    return outputs


def started_again() -> None:
    """Count turns from the first one, as a process does that has just been started."""
    from hotswap.engine import mesh
    from hotswap.engine.layout.registry import entry_of

    mesh._joined[entry_of(HERE["model"])]._turn -= 1


def bring_up_by_rank(folder: Path, prepared: bool) -> None:
    """lora_A and lora_B of one layer are cut along their rank axes, before or after prepare()."""
    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(net(), folder).eval()
    if prepared:
        hotswap.prepare(model, target_rank=8)
    cut(model, by_rank=True)
    if not prepared:
        hotswap.prepare(model, target_rank=8)


def bring_up_cut_later(folder: Path) -> None:
    HERE["model"] = HERE["run"] = model = PeftModel.from_pretrained(net(), folder).eval()
    hotswap.prepare(model, target_rank=8)
    cut(model)


def together() -> None:
    hotswap.swap_together(HERE["model"])
