"""What a deployment may do to a compiled model: how often it recompiles, by whose fault, and the sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import prepare_model_for_compiled_hotswap

import hotswap
from tests.support.compiled import Lora

Act = Callable[[Lora], Any]


@dataclass(frozen=True)
class Scenario:
    """An action between warm-up and check; ``recompiles`` per compiled region, and what is said of it."""

    act: Act
    recompiles: int
    cause: str = ""
    says: str = ""
    remedy: str = ""
    before: Act = lambda lora: None
    call: Act = lambda lora: lora.run()


def layers(lora: Lora) -> list[LoraLayer]:
    return [module for module in lora.model.modules() if isinstance(module, LoraLayer)]


def prepare(rank: int) -> Act:
    return lambda lora: hotswap.prepare(lora.model, target_rank=rank)


def peft_prepare(lora: Lora) -> None:
    prepare_model_for_compiled_hotswap(lora.model, target_rank=8, check_compiled="ignore")


def second_adapter(lora: Lora) -> None:
    lora.model.add_adapter("two", LoraConfig(r=4, lora_alpha=8, target_modules=lora.targets))


def set_scale(lora: Lora) -> None:
    for layer in layers(lora):
        layer.set_scale("default", 3.0)


def cast_adapter(lora: Lora) -> None:
    for layer in layers(lora):
        layer.lora_A.to(torch.bfloat16)
        layer.lora_B.to(torch.bfloat16)


def unfreeze(lora: Lora) -> None:
    for parameter in lora.model.parameters():
        parameter.requires_grad_(True)


def train_adapter(lora: Lora) -> None:
    for name, parameter in lora.model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".default." in name)


def transpose_storage(lora: Lora) -> None:
    for layer in layers(lora):
        weight = layer.lora_A["default"].weight
        weight.data = weight.data.t().contiguous().t()


def new_objects(lora: Lora) -> None:
    for layer in layers(lora):
        down = layer.lora_A["default"]
        down.weight = torch.nn.Parameter(down.weight.data.clone(), requires_grad=False)


def with_dropout(lora: Lora) -> None:
    for layer in layers(lora):
        layer.lora_dropout["default"] = torch.nn.Dropout(0.1).eval()


def inference_weights(lora: Lora) -> None:
    """What a swap under inference mode does that replaces a weight instead of copying into it."""
    with torch.inference_mode():
        for layer in layers(lora):
            down = layer.lora_A["default"]
            down.weight = torch.nn.Parameter(down.weight.clone(), requires_grad=False)


def call_with_inference_tensor(lora: Lora) -> None:
    with torch.inference_mode():
        x = lora.inputs()
    lora.run(x)


def under(mode: Any) -> Act:
    def call(lora: Lora) -> None:
        x = lora.inputs()
        with mode():
            lora.called(x)

    return call


def batch(size: int) -> Act:
    return lambda lora: lora.run(lora.inputs(batch=size))


PREPARE = "call hotswap.prepare(model, target_rank="
WARM = "warm up"
nothing: Act = lambda lora: None  # noqa: E731

SCENARIOS = {
    "the same rank and alpha": Scenario(lambda m: m.swap(4, 8), 0),
    "a larger rank": Scenario(
        lambda m: m.swap(8, 16), 1, "swap", "the rank changed from 4 to 8", PREPARE + "8)"
    ),
    "a smaller rank, which PEFT pads": Scenario(lambda m: m.swap(2, 4), 0),
    "another alpha": Scenario(
        lambda m: m.swap(4, 16), 1, "swap", "alpha / rank = 2.0 was compiled in", PREPARE
    ),
    "prepared, a larger rank and another alpha": Scenario(
        lambda m: m.swap(8, 64), 0, before=prepare(16)
    ),
    "prepared for too small a rank": Scenario(
        lambda m: m.swap(16, 32),
        1,
        "swap",
        "the rank changed from 8 to 16",
        PREPARE + "16)",
        before=prepare(8),
    ),
    "prepared after torch.compile": Scenario(
        peft_prepare, 1, "swap", "alpha / rank = 2.0 was compiled in", PREPARE
    ),
    "set_scale() on hotswap's preparation": Scenario(set_scale, 0, before=prepare(8)),
    "PEFT's set_scale() on PEFT's preparation": Scenario(
        set_scale,
        1,
        "swap",
        "the scaling was a tensor and is a Python number now",
        "hotswap.set_scale(model, scale)",
        before=peft_prepare,
    ),
    "the adapter cast": Scenario(
        cast_adapter,
        1,
        "swap",
        "the adapter's dtype changed from torch.float32 to torch.bfloat16",
        "cast the adapter's weights before the swap",
    ),
    "the model cast": Scenario(
        lambda m: m.model.to(torch.bfloat16),
        1,
        "swap",
        "a weight's dtype changed from torch.float32 to torch.bfloat16",
        "model.to(dtype)",
        call=lambda lora: lora.run(lora.inputs().bfloat16()),
    ),
    "a weight replaced under inference mode": Scenario(
        inference_weights,
        1,
        "swap",
        "a weight was replaced by a tensor that was made inside torch.inference_mode()",
        "weight.copy_(new)",
    ),
    "train() with dropout": Scenario(
        lambda m: m.model.train(),
        1,
        "environment",
        "train() or eval() was called",
        "model.eval()",
        before=with_dropout,
    ),
    "gradients on": Scenario(
        nothing,
        1,
        "environment",
        "gradients were on in one call and off in the other",
        "with torch.no_grad()",
        call=under(torch.enable_grad),
    ),
    "inference mode": Scenario(
        nothing,
        1,
        "environment",
        "one call ran under torch.inference_mode(), the other did not",
        "with torch.inference_mode()",
        call=under(torch.inference_mode),
    ),
    "autocast": Scenario(
        nothing,
        1,
        "environment",
        "one call ran under torch.autocast(), the other did not",
        "with torch.autocast(...)",
        call=under(lambda: torch.autocast("cpu")),
    ),
    "another number of threads": Scenario(
        lambda m: torch.set_num_threads(torch.get_num_threads() + 1),
        1,
        "environment",
        "the number of threads changed",
        "torch.set_num_threads()",
    ),
    "deterministic algorithms": Scenario(
        lambda m: torch.use_deterministic_algorithms(True),
        1,
        "environment",
        "a global setting of torch changed (deterministic_algorithms)",
        "set it before the warm-up",
    ),
    "another batch": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 3",
        "torch._dynamo.mark_dynamic(input, 0)",
        call=batch(3),
    ),
    "a batch of one": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 1",
        WARM,
        call=batch(1),
    ),
    "a second adapter added": Scenario(
        second_adapter, 1, "swap", "an adapter was added or removed", "hotswap.swap(model, adapter)"
    ),
    "set_adapter() to a loaded one": Scenario(
        lambda m: m.model.set_adapter("two"),
        1,
        "swap",
        "the active adapter changed, as by set_adapter()",
        "hotswap.swap(model, adapter)",
        before=second_adapter,
    ),
    "adapters disabled": Scenario(
        lambda m: m.model.base_model.disable_adapter_layers(),
        1,
        "swap",
        "adapters were disabled or enabled",
        "hotswap.swap(model, None)",
    ),
    "merged": Scenario(
        lambda m: m.model.merge_adapter(),
        1,
        "swap",
        "an adapter was merged or unmerged",
        "do not merge a compiled model",
    ),
    "unfrozen": Scenario(
        unfreeze, 1, "swap", "a weight was frozen or unfrozen", "requires_grad_() before"
    ),
    "the adapter unfrozen": Scenario(
        train_adapter, 1, "swap", "an adapter was frozen or unfrozen", "requires_grad_() before"
    ),
    "another memory layout": Scenario(
        transpose_storage, 1, "swap", "memory layout (strides) changed", "copy_"
    ),
    "new parameters that look the same": Scenario(new_objects, 0),
    "an unprepared swap and another batch together": Scenario(
        lambda m: m.swap(4, 16),
        1,
        "swap",
        "alpha / rank = 2.0 was compiled in",
        "also an input's shape changed in dimension 0 from 2 to 3",
        call=batch(3),
    ),
    "a prepared swap and another batch together": Scenario(
        lambda m: m.swap(8, 64),
        1,
        "input",
        "an input's shape changed in dimension 0 from 2 to 3",
        WARM,
        before=prepare(16),
        call=batch(3),
    ),
}

MLP_ONLY = {
    "train() without dropout": Scenario(lambda m: m.model.train(), 0),
    "an input made under inference mode": Scenario(
        nothing,
        1,
        "input",
        "a tensor was made inside torch.inference_mode() in one call",
        "make the inputs of warm-up and check in the same way",
        call=call_with_inference_tensor,
    ),
}

LLAMA_ONLY = {
    "train() after eval()": Scenario(
        lambda m: m.model.train(), 1, "environment", "train() or eval() was called", "model.eval()"
    ),
    "another length": Scenario(
        nothing,
        1,
        "input",
        "an input's shape changed in dimension 1 from 5 to 9",
        "mark_dynamic",
        call=lambda lora: lora.run(lora.inputs(length=9)),
    ),
}

# a real decoder is slow to compile; every scenario runs on a small one
LLAMA_PER_LAYER = {
    name: (SCENARIOS | LLAMA_ONLY)[name]
    for name in ("another length", "an unprepared swap and another batch together")
}
