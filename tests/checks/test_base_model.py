"""``--base``: a model on the meta device; and the checker accepts what swap() accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, LlamaConfig

import hotswap
from hotswap.adapters.fit import BaseModel, belongs
from hotswap.adapters.plan import ModulePlan
from hotswap.adapters.spec import AdapterSpec
from hotswap.checks.base_model import describe, read_base
from hotswap.errors import HotswapError
from pytest_hotswap import strategies
from pytest_hotswap.adapters.derived import DEFECTS, break_adapter
from pytest_hotswap.adapters.described import AdapterDescription
from pytest_hotswap.adapters.described import write_adapter as write_described
from tests.support.adapter_files import write_adapter
from tests.support.models import micro

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    LlamaConfig(**SIZES, **HEADS, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return folder


def codes(base: BaseModel, folder: Path) -> list[str]:
    return [finding.code for finding in belongs(base, AdapterSpec.read(folder))]


def test_modules_and_dimensions_are_found_without_weights(llama: Path, tmp_path: Path) -> None:
    base = read_base(llama)
    assert read_base(llama / "config.json").modules == base.modules
    name = "model.layers.1.self_attn.k_proj"
    assert codes(base, write_adapter(tmp_path / "a", modules={name: (32, 16)})) == []
    assert codes(base, write_adapter(tmp_path / "b", modules={name[6:]: (32, 16)})) == []
    assert codes(base, write_adapter(tmp_path / "c", modules={name: (32, 32)})) == ["HSW107"]
    far = {"model.layers.2.self_attn.k_proj": (32, 16)}
    assert codes(base, write_adapter(tmp_path / "d", modules=far)) == ["HSW112"]
    assert "closest match: 2 other model.layers.*.self_attn.k_proj" in str(
        belongs(base, AdapterSpec.read(tmp_path / "d"))[0]
    )


def test_the_layers_of_gpt2_are_linear(tmp_path: Path) -> None:
    GPT2Config(
        vocab_size=32, n_embd=16, n_layer=1, n_head=2, architectures=["GPT2LMHeadModel"]
    ).save_pretrained(tmp_path)
    base = read_base(tmp_path)
    name = "transformer.h.0.attn.c_attn"
    assert codes(base, write_adapter(tmp_path / "a", modules={name: (16, 48)})) == []
    assert codes(base, write_adapter(tmp_path / "b", modules={name: (48, 16)})) == ["HSW107"]


def test_models_of_diffusers_are_built(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = read_base(tmp_path)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert base.modules[name].in_features == 32


def test_every_kind_of_layer_that_peft_makes_belongs(tmp_path: Path) -> None:
    class Kinds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(16, 8)
            self.conv = torch.nn.Conv2d(8, 8, 3, groups=2)
            self.conv1 = torch.nn.Conv1d(8, 4, 3)
            self.head = torch.nn.Linear(8, 3)

    with torch.device("meta"):
        base = describe(Kinds(), "kinds")
    config = LoraConfig(r=4, target_modules=["embedding", "conv", "conv1", "head"], use_dora=False)
    get_peft_model(Kinds(), config).save_pretrained(str(tmp_path / "a"))
    assert codes(base, tmp_path / "a") == []
    expected = {"embedding", "conv", "conv1", "head"}
    assert set(AdapterSpec.read(tmp_path / "a").modules) == expected


@pytest.mark.parametrize("text", ["[]", "{", '{"model_type": "nonsense"}', "{}"])
def test_what_is_no_config_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HotswapError, match="cannot be built"):
        read_base(tmp_path)


# the checker accepts exactly what swap() accepts


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, hotswap.SwapPlan, Path]:
    folder = tmp_path_factory.mktemp("served")
    model = get_peft_model(micro(), LoraConfig(r=4, target_modules=TARGETS))
    model.save_pretrained(str(folder / "first"))
    loaded = PeftModel.from_pretrained(micro(), folder / "first").eval()
    plan = hotswap.plan([folder / "first"])
    hotswap.prepare(loaded, plan=plan)
    return loaded, plan, folder / "first"


TARGETS = [name for name, m in micro().named_modules() if isinstance(m, torch.nn.Linear)][:2]
DAMAGES = (
    "none",
    "config rank",
    "other width",
    "no B",
    "extra",
    "integers",
    "cut",
    "exchanged",
    "pissa",
)


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 6),
    alpha=st.integers(1, 32),
    targets=st.sets(st.sampled_from([*TARGETS, "elsewhere"]), min_size=1),
    damage=st.sampled_from(DAMAGES),
    patterned=st.booleans(),
)
@example(rank=4, alpha=8, targets=set(TARGETS), damage="none", patterned=False)
@example(rank=5, alpha=8, targets=set(TARGETS), damage="none", patterned=False)
@example(rank=4, alpha=8, targets={"elsewhere"}, damage="none", patterned=False)
def test_the_checker_accepts_what_a_swap_accepts(
    served: tuple[Any, hotswap.SwapPlan, Path],
    tmp_path_factory: pytest.TempPathFactory,
    rank: int,
    alpha: int,
    targets: set[str],
    damage: str,
    patterned: bool,
) -> None:
    model, plan, first = served
    shapes = {
        name: (module.in_features, module.out_features) for name, module in plan.modules.items()
    }
    modules = {name: shapes.get(name, (8, 8)) for name in sorted(targets)}
    if damage == "other width":
        modules = {name: (a + 1, b) for name, (a, b) in modules.items()}
    folder = tmp_path_factory.mktemp("adapters") / "next"
    config: dict[str, Any] = {"r": rank + 1} if damage == "config rank" else {}
    if damage == "pissa":
        config["init_lora_weights"] = "pissa"
    write_adapter(
        folder,
        modules=modules,
        rank=rank,
        alpha=alpha,
        rank_pattern={min(modules): 1 + rank % 4} if patterned else None,
        dtype="I32" if damage == "integers" else "F32",
        extra={"odd.weight": ("F32", (1,))} if damage == "extra" else None,
        config=config,
    )
    weights = folder / "adapter_model.safetensors"
    if damage in ("no B", "exchanged"):
        key = f"base_model.model.{min(modules)}.lora"
        a, b = modules[min(modules)]
        pair = {f"{key}_A.weight": ("F32", (rank, a)), f"{key}_B.weight": ("F32", (b, rank))}
        if damage == "exchanged":
            pair = {f"{key}_A.weight": ("F32", (b, rank)), f"{key}_B.weight": ("F32", (rank, a))}
        else:
            del pair[f"{key}_B.weight"]
        write_adapter(folder, modules=modules, rank=rank, tensors=pair)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    found = [f for f in hotswap.check_adapters(folder, plan=plan) if f.severity == "error"]
    try:
        hotswap.swap(model, folder)
    except HotswapError:
        accepted = False
    else:
        accepted = True
        hotswap.swap(model, first)
    assert accepted == (not found)
    fits = rank < 5 and targets <= set(TARGETS) and not patterned
    assert accepted or damage != "none" or not fits


LINEAR = {name: module for name, module in micro().named_modules() if name in TARGETS}
ROOM = hotswap.SwapPlan(
    {name: ModulePlan("linear", 8, m.in_features, m.out_features) for name, m in LINEAR.items()}
)


@settings(max_examples=25, deadline=None)
@given(
    fleet=strategies.fleets(min_size=2, max_size=4, max_rank=6, modules=TARGETS),
    planned=st.integers(1, 3),
    defects=st.lists(st.sampled_from(["", "", *DEFECTS]), min_size=4, max_size=4),
)
def test_the_checker_accepts_of_a_fleet_what_a_swap_accepts(
    tmp_path_factory: pytest.TempPathFactory,
    fleet: list[AdapterDescription],
    planned: int,
    defects: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("fleet")
    good = [write_described(folder / f"good{n}", one, ROOM) for n, one in enumerate(fleet)]
    plan = hotswap.plan(good[:planned])
    model = hotswap.load(micro(), plan, good[0])
    judged = [
        break_adapter(path, folder / f"bad{n}", defect, room=plan.ranks) if defect else path
        for n, (path, defect) in enumerate(zip(good, defects, strict=False))
    ]
    found = hotswap.check_adapters(judged, plan=plan, weights=True)
    refused = {
        path for path in judged for f in found if f.severity == "error" and path.name in f.where
    }
    for path, defect in zip(judged, defects, strict=False):
        try:
            hotswap.swap(model, path)
        except HotswapError:
            assert path in refused
            assert defect or path in good[planned:]
        else:
            assert path not in refused
