"""What is read from a folder agrees with the layers of the model that PEFT saved it from."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from hotswap.adapters.modules import TokenRows
from hotswap.adapters.spec import AdapterSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, groups=2)
        self.q_proj = nn.Linear(8, 5)
        self.v_proj = nn.Linear(8, 7)


def saved(folder: Path, config: LoraConfig) -> tuple[dict[str, LoraLayer], AdapterSpec]:
    with torch.random.fork_rng():
        model = get_peft_model(Net(), config)
    model.save_pretrained(folder, save_embedding_layers=False)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return layers, AdapterSpec.read(folder)


def test_ranks_scalings_and_sizes_are_those_of_pefts_layers(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["tokens", "conv", "q_proj", "v_proj"],
        rank_pattern={"q_.*": 2},
        alpha_pattern={"^v_proj": 3},
        use_rslora=True,
    )
    layers, spec = saved(tmp_path, config)
    assert spec.findings == ()
    assert spec.modules.keys() == layers.keys()
    for name, layer in layers.items():
        module = spec.modules[name]
        assert module.rank == layer.r["default"]
        assert module.scaling == layer.scaling["default"]
        assert (module.in_features, module.out_features) == (layer.in_features, layer.out_features)
    assert (spec.modules["conv"].groups, spec.modules["conv"].kernel) == (2, (3,))
    assert spec.modules["tokens"].kind == "embedding"


def test_a_lora_bias_is_seen(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], lora_bias=True)
    _, spec = saved(tmp_path, config)
    assert spec.findings == ()
    assert spec.modules["q_proj"].bias


def test_dora_and_whole_modules_are_seen(tmp_path: Path) -> None:
    config = LoraConfig(
        target_modules=["q_proj", "conv"], use_dora=True, modules_to_save=["v_proj"]
    )
    layers, spec = saved(tmp_path, config)
    assert spec.findings == ()
    assert {name for name, module in spec.modules.items() if module.dora} == layers.keys()
    assert {name: info.shape for name, info in spec.saved.items()} == {
        "v_proj.weight": (7, 8),
        "v_proj.bias": (7,),
    }


def test_token_rows_are_seen(tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices={"tokens": [4, 2]})
    _, spec = saved(tmp_path, config)
    assert spec.findings == ()
    assert spec.tokens == {"tokens": TokenRows((4, 2), 6, "F32")}


def test_a_parameter_that_is_targeted_directly_is_seen(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=[], target_parameters=["q_proj.weight"])
    layers, spec = saved(tmp_path, config)
    assert spec.findings == ()
    module = spec.modules["q_proj"]
    assert (module.kind, module.parameters, module.experts) == ("parameter", ("weight",), 1)
    assert spec.modules.keys() == layers.keys()
