"""hotswap.engine on quantised base layers: torchao, bitsandbytes, HQQ and GPTQModel, where installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hotswap
from hotswap.errors import UnsupportedLayerError
from tests.support.models import Around, check_swaps, fresh, seeded, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

INPUTS = torch.linspace(-1, 1, 128).reshape(2, 64)
FLEET = {
    "small": {"r": 4, "lora_alpha": 8},
    "large": {"r": 16, "lora_alpha": 6},
    "rslora": {"r": 8, "lora_alpha": 8, "use_rslora": True},
}


def torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    model = seeded(lambda: Around(nn.Linear(64, 32)))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def bitsandbytes(bits: int) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    plain = seeded(lambda: nn.Linear(64, 32))
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    model = Around(layer.to("cpu")).eval()
    setattr(model, f"is_loaded_in_{bits}bit", True)
    return model


def hqq() -> Any:
    quantize = pytest.importorskip("hqq.core.quantize")
    config = quantize.BaseQuantizeConfig(nbits=8, group_size=32)
    plain = seeded(lambda: nn.Linear(64, 32))
    layer = quantize.HQQLinear(plain, config, compute_dtype=torch.float32, device="cpu")
    return Around(layer).eval()


def gptqmodel(module: str, name: str) -> Any:
    layers = pytest.importorskip(f"gptqmodel.nn_modules.qlinear.{module}")
    layer = getattr(layers, name)(4, 32, True, False, 64, 32, bias=True, register_buffers=True)
    generator = torch.Generator().manual_seed(0)
    for packed in (layer.qweight, layer.qzeros):
        packed.copy_(torch.randint(-(2**31), 2**31, packed.shape, generator=generator))
    layer.scales.copy_(torch.rand(layer.scales.shape, generator=generator) / 50)
    layer.post_init()
    model = Around(layer).eval()
    model.scale = nn.Parameter(torch.ones(1))  # PEFT asks the first parameter for the device
    return model


BASES: dict[str, tuple[Callable[[], Any], str]] = {
    "torchao int8": (torchao, "TorchaoLoraLinear"),
    "bitsandbytes 8-bit": (lambda: bitsandbytes(8), "Linear8bitLt"),
    "bitsandbytes 4-bit": (lambda: bitsandbytes(4), "Linear4bit"),
    "HQQ": (hqq, "HqqLoraLinear"),
    "GPTQ": (lambda: gptqmodel("torch", "TorchLinear"), "GPTQLoraLinear"),
    "AWQ": (lambda: gptqmodel("torch_awq", "AwqTorchLinear"), "AwqLoraLinear"),
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("library", BASES)
def test_a_quantised_linear_layer_swaps(library: str, dora: bool, tmp_path: Path) -> None:
    if dora and library in ("GPTQ", "AWQ"):
        pytest.skip("PEFT has no DoRA over it")
    if dora and library == "bitsandbytes 8-bit":
        pytest.skip("PEFT's DoRA over an 8-bit layer fails in its second forward on a CPU")
    base, layer = BASES[library]
    base()
    configs = {k: {**v, "target_modules": ["layer"]} for k, v in FLEET.items()}
    configs["large"]["use_dora"] = dora
    fleet = write_fleet(tmp_path, base, configs)
    model = fresh(base, fleet["small"])
    assert type(model.base_model.model.layer).__name__ == layer
    plan = hotswap.plan([*fleet.values()])
    if dora and getattr(
        model.base_model.model.layer.base_layer, "support_avx512bf16_for_cpu", False
    ):
        with pytest.raises(UnsupportedLayerError, match="misreads the weight that its Linear4bit"):
            hotswap.prepare(model, plan=plan)
        return
    hotswap.prepare(model, plan=plan)
    check_swaps(model, base, fleet, INPUTS, fullgraph=False)
