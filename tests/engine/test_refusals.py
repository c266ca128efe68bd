"""What is refused, before anything changes, with the reason and what to do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import (
    LoHaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import nn

import hotswap
from hotswap.errors import (
    AdapterError,
    AlreadyCompiledError,
    HotswapError,
    RankTooLargeError,
    UnsupportedLayerError,
)
from tests.support.models import bits, fresh, micro, run, same_bits, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(tmp_path, base, {"small": {"r": 2, "lora_alpha": 4}, "large": {"r": 8}})


@pytest.fixture
def model(base: Any, fleet: Any) -> Any:
    found = fresh(base, fleet["small"])
    hotswap.prepare(found, target_rank=8)
    return found


def refused(model: Any, adapter: Path, words: str, error: type = AdapterError) -> None:
    """Assert that a swap and a bank refuse the adapter with these words, and nothing changes."""
    before = bits(model)
    with pytest.raises(error, match=words):
        hotswap.swap(model, adapter)
    with pytest.raises(error, match=words):
        hotswap.AdapterBank(model).add("bad", adapter)
    assert same_bits(before, bits(model))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


A, B = "base_model.model.first.lora_A.weight", "base_model.model.first.lora_B.weight"
DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "NaN": (lambda t: t[A].view(-1)[5].fill_(float("nan")), r"first\.lora_A\.weight: holds NaN"),
    "infinity": (
        lambda t: t[B].view(-1)[0].fill_(float("inf")),
        r"first\.lora_B\.weight: holds NaN",
    ),
    "too large": (
        lambda t: t.update({A: t[A].double() * 1e300}),
        "which is infinity as torch.float32",
    ),
    "half a pair": (lambda t: t.pop(B), r"first: lora_B\.weight missing"),
    "other half": (lambda t: t.pop(A), r"first: lora_A\.weight missing"),
    "empty": (lambda t: t.clear(), "no LoRA weights"),
    "A rank": (lambda t: t.update({A: t[A][:1].clone()}), r"first: A has rank 1, B has rank 2"),
    "both ranks": (
        lambda t: t.update({A: t[A][:1].clone(), B: t[B][:, :1].clone()}),
        r"first: the weights have rank 1, the config says 2",
    ),
    "int8": (lambda t: t.update({A: t[A].to(torch.int8)}), r"first.*dtype I8"),
    "bool": (lambda t: t.update({B: t[B] > 0}), r"first.*dtype BOOL"),
    "smaller base": (lambda t: t.update({A: t[A][:, :7].clone()}), "in_features 7, the plan has 8"),
    "larger base": (lambda t: t.update({B: t[B].repeat(2, 1)}), "out_features 24, the plan has 12"),
    "exchanged": (lambda t: t.update({A: t[B], B: t[A]}), "A and B are exchanged"),
    "another tensor": (
        lambda t: t.update({"base_model.model.other": t[A].clone()}),
        "not a LoRA weight",
    ),
    "another module": (
        lambda t: t.update(
            {f"base_model.model.third.first.{k[-13:]}": t[k].clone() for k in (A, B)}
        ),
        "the adapter targets a module that is not in the plan",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(damage: str, fleet: Any, model: Any) -> None:
    change, words = DAMAGES[damage]
    edit(fleet["small"], change)
    refused(model, fleet["small"], words)


def test_a_value_that_the_slot_cannot_hold_is_refused(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["small"]).to(torch.float16)
    hotswap.prepare(model, target_rank=8)
    edit(fleet["large"], lambda t: t[A].view(-1)[0].fill_(1e6))
    refused(
        model,
        fleet["large"],
        r"first\.lora_A\.weight: holds 1e\+06, which is infinity as torch\.float16",
    )


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(length: int, fleet: Any, model: Any) -> None:
    path = fleet["large"] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refused(model, fleet["large"], "truncated")


def test_a_missing_folder_or_file_and_a_pickle_are_refused(fleet: Any, model: Any) -> None:
    refused(model, fleet["large"] / "nowhere", "does not exist")
    weights = fleet["large"] / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    refused(model, fleet["large"], "pickle, which can run code")
    (fleet["small"] / "adapter_config.json").unlink()
    refused(model, fleet["small"], r"no adapter_config\.json")


def test_another_peft_method_is_refused(base: Any, model: Any, tmp_path: Path) -> None:
    other = get_peft_model(copy.deepcopy(base), LoHaConfig(target_modules=["first"]))
    other.save_pretrained(tmp_path / "loha")
    refused(model, tmp_path / "loha", "peft_type is 'LOHA', expected 'LORA'")


def test_a_rank_above_the_prepared_one_is_refused(base: Any, model: Any, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", base, r=10)
    refused(model, wide, r"rank 10, the plan allows 8.*target_rank=10", RankTooLargeError)


FEATURES: dict[str, tuple[dict[str, Any], str]] = {
    "aLoRA": ({"alora_invocation_tokens": [1]}, "ALoraLinearVariant"),
    "QALoRA": ({"use_qalora": True}, "QALoraLinearVariant"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "BdLoraLinearVariant"),
    "Arrow": ({"arrow_config": {"top_k": 1}}, "ArrowLinearVariant"),
    "KaSA": ({"kasa_config": {"beta": 1e-4}}, "KasaLinearVariant"),
    "MonteCLoRA": ({"monteclora_config": {"num_samples": 2}}, "MontecloraLinearVariant"),
    "VeLoRA": ({"velora_config": {"num_groups": 2}}, "VeloraLinearVariant"),
    "PiSSA": ({"init_lora_weights": "pissa"}, r"LoraLayer\.pissa_init"),
    "PiSSA, fast": ({"init_lora_weights": "pissa_niter_4"}, r"LoraLayer\.pissa_init"),
    "OLoRA": ({"init_lora_weights": "olora"}, r"LoraLayer\.olora_init"),
    "CorDA": ({"init_lora_weights": "corda"}, r"LoraLayer\.corda_init"),
    "LoftQ": ({"init_lora_weights": "loftq"}, r"LoraLayer\.loftq_init"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, r"LoraLayer\.lora_ga_init"),
    "layer_replication": ({"layer_replication": [[0, 2]]}, "LoraModel"),
    "bias=lora_only": ({"bias": "lora_only"}, "LoraModel"),
    "bias=all": ({"bias": "all"}, "LoraModel"),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_an_adapter_with_a_feature_that_cannot_be_swapped_is_refused(
    feature: str, fleet: Any, model: Any
) -> None:
    values, peft_name = FEATURES[feature]
    set_config(fleet["small"], **values)
    refused(model, fleet["small"], rf"{next(iter(values))}.*PEFT's {peft_name}")
    assert hotswap.plan([*fleet.values()]).conflicts[0].code == "HSW102"


@pytest.mark.parametrize("feature", ["PiSSA, fast", "bias=lora_only", "bias=all"])
def test_a_model_with_such_an_adapter_is_not_prepared(feature: str, base: Any) -> None:
    values, peft_name = FEATURES[feature]
    config = LoraConfig(target_modules=["first"], **values)
    model = get_peft_model(copy.deepcopy(base), config)
    before = bits(model)
    with pytest.raises(UnsupportedLayerError, match=f"PEFT's {peft_name}"):
        hotswap.prepare(model, target_rank=16)
    assert same_bits(before, bits(model))


def test_merged_adapters_are_refused_until_they_are_unmerged(
    base: Any, fleet: Any, model: Any
) -> None:
    bank = hotswap.AdapterBank(model)
    bank.add("large", fleet["large"])
    model.merge_adapter()
    before = bits(model)
    with pytest.raises(HotswapError, match=r"merged.*unmerge_adapter\(\)"):
        hotswap.swap(model, fleet["large"])
    with pytest.raises(HotswapError, match="merged"), bank.using("large"):
        pass
    with pytest.raises(UnsupportedLayerError, match="merged"):
        hotswap.prepare(model, target_rank=16)
    assert same_bits(before, bits(model))
    model.unmerge_adapter()
    hotswap.swap(model, fleet["large"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["large"])))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("in_place", [True, False], ids=["has DoRA", "is to get DoRA"])
def test_dora_over_a_weight_that_is_packed_for_the_cpu_is_refused(
    base: Any, tmp_path: Path, packs: bool, in_place: bool
) -> None:
    configs = {"plain": {"target_modules": ["first"]}, "dora": {"use_dora": True}}
    configs["dora"]["target_modules"] = ["first"]
    fleet = write_fleet(tmp_path, base, configs)
    model = fresh(base, fleet["dora" if in_place else "plain"])
    # as on bitsandbytes' Linear4bit, where the CPU has AVX512-BF16
    model.base_model.model.first.base_layer.support_avx512bf16_for_cpu = packs
    plan = hotswap.plan([*fleet.values()])
    if packs:
        with pytest.raises(
            UnsupportedLayerError, match=r"misreads the weight .* serve it on a GPU"
        ):
            hotswap.prepare(model, plan=plan)
    else:
        hotswap.prepare(model, plan=plan)
        hotswap.swap(model, fleet["plain"])
        torch.testing.assert_close(run(model), run(fresh(base, fleet["plain"])))


def test_an_offloaded_model_is_refused(base: Any, tmp_path: Path) -> None:
    one, two = (
        write_adapter(tmp_path / name, base, r=rank, target_modules=["first"])
        for name, rank in (("one", 2), ("two", 8))
    )
    model = fresh(base, one)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedLayerError, match=r"first: lora_A.*meta device \(offloaded\)"):
        hotswap.prepare(model, target_rank=8)
    torch.testing.assert_close(run(model), run(fresh(base, one)))
    model = fresh(base, one)
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model)
    bank.add("two", two)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(HotswapError, match="meta device"):
        hotswap.swap(model, two)
    with pytest.raises(HotswapError, match="meta device"), bank.using("two"):
        pass


def test_a_gradient_is_refused_until_it_is_gone(base: Any, fleet: Any) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(base), fleet["small"], is_trainable=True)
    tokens = torch.ones(1, 4, dtype=torch.long)
    model(tokens).sum().backward()
    with pytest.raises(UnsupportedLayerError, match=r"\.grad.*zero_grad"):
        hotswap.prepare(model, target_rank=8)
    model.zero_grad()
    hotswap.prepare(model, target_rank=8)


def compile_a_layer(model: Any) -> Any:
    model.base_model.model.first = torch.compile(model.base_model.model.first)
    return model


def compile_in_place(part: Callable[[Any], nn.Module]) -> Callable[[Any], Any]:
    def compiled(model: Any) -> Any:
        part(model).compile(backend="eager")
        return model

    return compiled


def compile_the_forward(part: Callable[[Any], nn.Module]) -> Callable[[Any], Any]:
    def compiled(model: Any) -> Any:
        part(model).forward = torch.compile(part(model).forward, backend="eager")
        return model

    return compiled


STYLES: dict[str, Callable[[Any], Any]] = {
    "torch.compile(model)": torch.compile,
    "model.compile()": compile_in_place(lambda model: model),
    "base.compile()": compile_in_place(lambda model: model.get_base_model()),
    "layer.compile()": compile_in_place(lambda model: model.base_model.model.first),
    "layer = torch.compile(layer)": compile_a_layer,
    "model.forward = torch.compile(model.forward)": compile_the_forward(lambda model: model),
    "base.forward = torch.compile(base.forward)": compile_the_forward(
        lambda model: model.get_base_model()
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_preparing_what_is_compiled_is_refused(style: str, base: Any, fleet: Any) -> None:
    model = STYLES[style](fresh(base, fleet["small"]))
    before = bits(model)
    with pytest.raises(AlreadyCompiledError, match=r"before torch\.compile"):
        hotswap.prepare(model, target_rank=8)
    assert same_bits(before, bits(model))
    hotswap.prepare(model, target_rank=8, check_compiled="ignore")


def test_preparing_over_a_compiled_base_is_refused(base: Any, fleet: Any) -> None:
    compiled = torch.compile(copy.deepcopy(base), backend="eager")
    model = PeftModel.from_pretrained(compiled, fleet["small"])
    with pytest.raises(AlreadyCompiledError):
        hotswap.prepare(model, target_rank=8)
