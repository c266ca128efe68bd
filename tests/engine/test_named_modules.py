"""Configs and names of tensors of which PEFT loads nothing, or not what is there: refused in every way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import hotswap
from hotswap.adapters.inspect import Inspector
from hotswap.checks.base_model import read_base
from hotswap.errors import AdapterError, HotswapError
from tests.support.models import bits, same_bits, seeded, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
X = torch.arange(1, 9).reshape(1, 8)
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "architectures": ["LlamaForCausalLM"],
}
CONFIG = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def base() -> Any:
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**SIZES)))


@pytest.fixture(scope="module")
def adapter(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "own", base, seed=1, **CONFIG)


def changed(
    adapter: Path,
    folder: Path,
    name: Callable[[str], str] = str,
    config: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir()
    fields = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **(config or {})}), "utf-8")
    tensors = load_file(adapter / WEIGHTS)
    save_file({name(key): value for key, value in tensors.items()}, folder / WEIGHTS)
    return folder


def refused(base: Any, adapter: Path, other: Path, code: str) -> None:
    """Check and plan say it, load and swap raise it, and nothing has changed."""
    assert code in {finding.code for finding in hotswap.check_adapters(other)}
    plan, model = hotswap.plan([adapter]), copy.deepcopy(base)
    served = hotswap.load(copy.deepcopy(base), plan, adapter)
    before = [bits(model), bits(served)]

    def planned() -> None:
        if conflicts := hotswap.plan([other]).conflicts:
            raise AdapterError(conflicts)

    ways = (
        planned,
        lambda: hotswap.load(model, plan, other),
        lambda: hotswap.swap(served, other),
    )
    for way in ways:
        with pytest.raises(HotswapError) as caught:
            way()
        assert code in {finding.code for finding in getattr(caught.value, "findings", ())}
    assert all(map(same_bits, before, [bits(model), bits(served)]))


LOST: dict[str, Callable[[str], str]] = {
    "without PEFT's prefix": lambda key: key.removeprefix(PREFIX),
    "with it twice": lambda key: PREFIX + key,
    "twice around it": lambda key: key.replace(PREFIX, f"{PREFIX}base_model."),
    "some without": lambda key: key.removeprefix(PREFIX) if ".layers.1." in key else key,
    "of a compiled model": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "of compiled layers": lambda key: key.replace("self_attn", "_orig_mod.self_attn"),
}


@pytest.mark.parametrize("name", LOST)
def test_names_of_which_peft_loads_nothing_are_refused(
    name: str, base: Any, adapter: Path, tmp_path: Path
) -> None:
    other = changed(adapter, tmp_path / "other", LOST[name])
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), other)
    lost = [p for n, p in loaded.named_parameters() if "lora_B" in n and not p.any()]
    assert len(lost) == (2 if name == "some without" else 4)
    refused(base, adapter, other, "HSW108")


def test_a_state_dict_may_have_the_names_of_the_model_at_hand(base: Any, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    served = hotswap.load(copy.deepcopy(base), hotswap.plan([adapter]), adapter)
    before = bits(served)
    for name in (LOST["without PEFT's prefix"], LOST["of compiled layers"]):
        hotswap.swap(served, None)
        given = {name(key): value for key, value in tensors.items()}
        hotswap.swap(served, given, config=LoraConfig(r=2, lora_alpha=8))
        assert same_bits(before, bits(served))


def test_a_config_that_leaves_the_choice_of_modules_to_peft_is_refused(
    base: Any, adapter: Path, tmp_path: Path
) -> None:
    other = changed(adapter, tmp_path / "other", config={"target_modules": None})
    refused(base, adapter, other, "HSW003")
    (found,) = hotswap.check_adapters(other)
    assert "target_modules is null" in found.message


@pytest.mark.parametrize(
    "targets", [r".*self_attn.*", ["q_proj", "v_proj", "mlp"], ["q_proj", "v_proj", "norm"]]
)
def test_modules_that_cannot_carry_lora_are_refused_where_the_model_is_known(
    targets: Any, base: Any, adapter: Path, tmp_path: Path
) -> None:
    other = changed(adapter, tmp_path / "other", config={"target_modules": targets})
    with pytest.raises(ValueError, match="is not supported"):
        PeftModel.from_pretrained(copy.deepcopy(base), other)
    LlamaConfig(**SIZES).save_pretrained(tmp_path / "base")
    inspector = Inspector(base=read_base(tmp_path / "base"))
    assert [f.code for f in inspector(str(adapter)).findings] == []
    assert "HSW112" in [f.code for f in inspector(str(other)).findings]
    served = hotswap.load(copy.deepcopy(base), hotswap.plan([adapter]), adapter)
    before, model = bits(served), copy.deepcopy(base)
    for way in (
        lambda: hotswap.swap(served, other),
        lambda: hotswap.load(model, hotswap.plan([other]), other),
    ):
        with pytest.raises(HotswapError, match="cannot carry LoRA, and PEFT refuses that"):
            way()
    assert same_bits(before, bits(served))
    assert same_bits(bits(base), bits(model))
    fine = {"target_modules": r".*self_attn\.[qv]_proj", "exclude_modules": ["self_attn"]}
    hotswap.swap(served, changed(adapter, tmp_path / "fine", config=fine))
    assert same_bits(before, bits(served))


def test_an_adapter_of_the_model_without_its_head_is_taken_as_the_checker_says(
    base: Any, adapter: Path, tmp_path: Path
) -> None:
    LlamaConfig(**SIZES).save_pretrained(tmp_path / "base")
    inspector = Inspector(base=read_base(tmp_path / "base"))
    bare = write_adapter(tmp_path / "bare", base.model, seed=1, r=2, target_modules=["q_proj"])
    assert inspector(str(adapter)).findings == ()
    (found,) = inspector(str(bare)).findings
    assert (found.code, found.severity) == ("HSW120", "warning")
    assert "AutoModel" in found.message
    assert "LlamaForCausalLM" in found.message
    plan = hotswap.plan([bare])
    hotswap.swap(hotswap.load(copy.deepcopy(base.model), plan, bare), bare)
    served = hotswap.load(copy.deepcopy(base), hotswap.plan([adapter]), adapter)
    with pytest.raises(AdapterError, match="not in the plan"):
        hotswap.swap(served, bare)
