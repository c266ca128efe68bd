"""What a refusal says: each reason once for a family of modules, with what helps against that reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

import hotswap
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.errors import AdapterError, HotswapError, NoAdapterError, UnsupportedLayerError
from tests.support.models import bits, fresh, run, same_bits, seeded, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.linspace(-1, 1, 16).reshape(2, 8)
TARGETS = {"target_modules": ["up", "down"]}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.down(torch.tanh(self.up(value)))


class Stack(nn.Module):
    """Many layers of one kind, as a language model has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(24))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            value = layer(value)
        return value


@pytest.fixture
def base() -> Any:
    return seeded(Stack)


@pytest.fixture
def fleet(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(tmp_path, base, {"one": {"r": 2, **TARGETS}, "two": {"r": 4, **TARGETS}})


def with_gradients(base: Any, folder: Path) -> Any:
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder, is_trainable=True)
    model(X).sum().backward()
    return model


def merged(base: Any, folder: Path) -> Any:
    model = fresh(base, folder)
    model.merge_adapter()
    return model


def on_meta(base: Any, folder: Path) -> Any:
    return fresh(base, folder).to("meta")


def with_pissa(base: Any, _: Path) -> Any:
    return get_peft_model(base, LoraConfig(r=2, init_lora_weights="pissa_niter_4", **TARGETS))


def with_biases(base: Any, _: Path) -> Any:
    return get_peft_model(base, LoraConfig(r=2, bias="all", **TARGETS))


def parametrized(base: Any, folder: Path) -> Any:
    model = fresh(base, folder)
    for layer in model.base_model.model.layers:
        nn.utils.weight_norm(layer.up.lora_A["default"], "weight")
    return model


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (with_gradients, "zero_grad"),
        (merged, "unmerge_adapter"),
        (on_meta, "without offloading"),
        (with_pissa, "path_initial_model_for_weight_conversion"),
        (with_biases, "without this feature"),
        (parametrized, "remove_parametrizations"),
    ],
)
def test_a_model_is_refused_in_a_few_words_with_the_remedy_for_its_reason(
    make: Any, remedy: str, base: Any, fleet: Any
) -> None:
    model = make(base, fleet["one"])
    with pytest.raises(UnsupportedLayerError) as refused:
        hotswap.prepare(model, target_rank=4)
    text = str(refused.value)
    assert remedy in text
    assert len(text) < 400
    assert text.count(remedy) == 1
    assert ("leave these modules out" in text) is False
    if make in (with_gradients, merged, on_meta):
        assert "layers.*.up (24 modules)" in text
        assert len(refused.value.layers) == 48  # for whoever asks for each


def test_an_adapter_is_refused_with_one_finding_for_a_family_of_modules(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = hotswap.load(base, hotswap.plan([fleet["one"]]), fleet["one"])
    tensors = load_file(fleet["one"] / "adapter_model.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    config = (fleet["one"] / "adapter_config.json").read_text()
    (broken / "adapter_config.json").write_text(config)
    for value in tensors.values():
        value.view(-1)[0] = float("nan")
    save_file(tensors, broken / "adapter_model.safetensors")
    for adapter, families in ((fleet["two"], 2), (broken, 4)):
        with pytest.raises(AdapterError) as refused:
            hotswap.swap(model, adapter)
        assert len(refused.value.findings) == families
        assert "(and 23 more of layers.*." in str(refused.value)
        remedies = {finding.remedy for finding in refused.value.findings}
        assert [str(refused.value).count(remedy) for remedy in remedies] == [1]
    model = fresh(
        seeded(Stack), write_adapter(tmp_path / "up", seeded(Stack), r=2, target_modules=["up"])
    )
    with pytest.raises(AdapterError) as refused:
        hotswap_adapter(model, fleet["one"], "default")
    assert len(refused.value.findings) == 1


@pytest.mark.parametrize("swap", [hotswap.swap, lambda m, a: hotswap_adapter(m, a, "default")])
def test_a_value_that_the_dtype_cannot_hold_is_told_from_a_broken_one(
    swap: Any, base: Any, fleet: Any
) -> None:
    path = fleet["one"] / "adapter_model.safetensors"
    good = load_file(path)
    model = fresh(base, fleet["one"]).half()
    if swap is hotswap.swap:
        hotswap.prepare(model)
    name = next(iter(good))
    for value, text in (
        (7e4, r"holds 7e\+04, which is infinity as torch.float16; serve .*bfloat16"),
        (float("inf"), "holds NaN or infinity as torch.float16; train or export"),
    ):
        tensors = {key: tensor.clone() for key, tensor in good.items()}
        tensors[name].view(-1)[0] = value
        save_file(tensors, path)
        before = bits(model)
        with pytest.raises(AdapterError, match=text):
            swap(model, fleet["one"])
        assert same_bits(before, bits(model))


def test_what_the_model_has_instead_of_the_adapter_is_said(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["one"])
    with pytest.raises(NoAdapterError, match="named 'defualt'; pass adapter_name='default'"):
        hotswap.prepare(model, adapter_name="defualt")
    hotswap.prepare(model, target_rank=4)
    for call in (hotswap.swap, lambda m, a, **kw: hotswap_adapter(m, a, **kw)):
        with pytest.raises(NoAdapterError, match="named 'defualt'; pass adapter_name='default'"):
            call(model, fleet["one"], adapter_name="defualt")
    ia3 = get_peft_model(
        seeded(Stack), IA3Config(target_modules=["up"], feedforward_modules=["up"])
    )
    with pytest.raises(NoAdapterError, match="'default' is IA3, and only LoRA is swapped"):
        hotswap.prepare(ia3, target_rank=4)
    with pytest.raises(NoAdapterError, match="load the first adapter"):
        hotswap.prepare(seeded(Stack), target_rank=4)


BASE_CHANGING = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "bias": {"bias": "lora_only"},
}


@pytest.mark.parametrize("kind", BASE_CHANGING)
def test_an_adapter_that_changed_the_base_model_is_not_swapped_out_as_if_it_had_not(
    kind: str, base: Any, fleet: Any, tmp_path: Path
) -> None:
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, **TARGETS, **BASE_CHANGING[kind])
    ).eval()
    before, output = bits(model), run(model, X)
    for adapter in fleet.values():  # of the same rank, and of another
        with pytest.raises(HotswapError, match=r"base (weights|model)"):
            hotswap_adapter(model, adapter, "default")
    assert same_bits(before, bits(model))
    assert torch.equal(run(model, X), output)
    # also where it came after the model was prepared
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=4)
    model.delete_adapter("default")
    model.add_adapter("default", LoraConfig(r=2, **TARGETS, **BASE_CHANGING[kind]))
    for adapter in (fleet["one"], None):
        with pytest.raises(HotswapError):
            hotswap.swap(model, adapter)


def test_an_adapter_as_it_was_trained_leaves_nothing_in_the_config_of_the_one_before(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    gaussian = write_adapter(tmp_path / "g", base, r=2, init_lora_weights="gaussian", **TARGETS)
    for prepared in (False, True):
        model = fresh(base, fleet["one"])
        if prepared:
            hotswap.prepare(model)
        config = model.peft_config["default"]
        for folder, init in ((gaussian, "gaussian"), (fleet["one"], True)):
            hotswap_adapter(model, folder, "default")
            assert (config.init_lora_weights, config.bias) == (init, "none")
            assert (
                config.base_model_name_or_path
                == model.peft_config["default"].base_model_name_or_path
            )


def test_norm_layers_that_diffusers_wrote_into_the_base_model_are_refused(
    base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["one"])
    model._transformer_norm_layers = {"norm.weight": torch.ones(2)}
    with pytest.raises(UnsupportedLayerError, match=r"norm layers.*unload_lora_weights"):
        hotswap.prepare(model, target_rank=4)
    model._transformer_norm_layers = None  # as unload_lora_weights() leaves it
    hotswap.prepare(model, target_rank=4)
    hotswap.swap(model, fleet["two"])
    model._transformer_norm_layers = {"norm.weight": torch.ones(2)}
    for adapter in (fleet["one"], None):
        with pytest.raises(UnsupportedLayerError, match="norm layers"):
            hotswap.swap(model, adapter)


@pytest.mark.parametrize("freezing", [True, False])
@pytest.mark.parametrize("how", ["wrapped", "in place", "a module inside"])
def test_code_that_has_weights_of_its_own_is_refused(
    how: str, freezing: bool, base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=4)
    bank = hotswap.AdapterBank(model)
    bank.add("two", fleet["two"])
    options = {"freezing": freezing}
    served = torch.compile(model, options=options) if how == "wrapped" else model
    if how != "wrapped":
        (model if how == "in place" else model.base_model.model.layers[1]).compile(options=options)
    if not freezing:
        hotswap.swap(served, fleet["two"])
        assert hotswap.AdapterBank(served).bytes == 0
        return
    before = bits(model)
    with pytest.raises(HotswapError, match=r"freezing=True.*not be served; compile it without"):
        hotswap.swap(served, fleet["two"])
    with pytest.raises(HotswapError, match=r"freezing=True"):
        hotswap.AdapterBank(served)
    if how != "wrapped":
        with pytest.raises(HotswapError, match=r"freezing=True"):
            bank.using("two").__enter__()
    assert same_bits(before, bits(model))


@pytest.mark.parametrize("other", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_made_while_another_thread_loads_without_memory_is_told(
    other: dict[str, Any], base: Any, fleet: Any, tmp_path: Path
) -> None:
    """Within PEFT's low_cpu_mem_usage=True every new parameter of the process is on the meta device."""
    adapter = write_adapter(tmp_path / "other", base, r=2, **other, **TARGETS)
    plan = hotswap.plan([fleet["one"], adapter])
    model, bare = fresh(base, fleet["one"]), copy.deepcopy(base)
    before = bits(model), bits(bare)
    with init_empty_weights(include_buffers=False):
        for call in (
            lambda: hotswap.prepare(model, plan=plan),
            lambda: hotswap.load(bare, plan, fleet["one"]),
        ):
            with pytest.raises(UnsupportedLayerError, match=r"meta device.*low_cpu_mem_usage"):
                call()
    assert same_bits(before[0], bits(model))
    assert same_bits(before[1], bits(bare))
    hotswap.prepare(model, plan=plan)
    hotswap.swap(model, adapter)
    torch.testing.assert_close(run(model, X), run(fresh(base, adapter), X))


def test_dora_over_base_weights_that_are_offloaded_is_refused_by_name(
    base: Any, fleet: Any, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "dora", base, r=2, use_dora=True, **TARGETS)
    plan = hotswap.plan([fleet["one"], adapter])
    offloaded = fresh(base, fleet["one"])
    layer = offloaded.base_model.model.layers[3].up.get_base_layer()
    layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match=r"layers.*up: DoRA needs .*offloaded"):
        hotswap.prepare(offloaded, plan=plan)
    model = hotswap.load(copy.deepcopy(base), plan, adapter)
    layer = model.base_model.model.layers[3].up.get_base_layer()
    layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match=r"layers.*up: DoRA needs .*offloaded"):
        hotswap.swap(model, fleet["one"])


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


@pytest.mark.parametrize("how", ["parametrization", "weight_norm"])
def test_weights_that_are_computed_at_every_forward_are_refused_until_they_are_not(
    how: str, base: Any, fleet: Any
) -> None:
    model = fresh(base, fleet["one"])
    hotswap.prepare(model, target_rank=4)
    layer = model.base_model.model.layers[3].down.lora_A["default"]
    bank = hotswap.AdapterBank(model)
    bank.add("two", fleet["two"])
    if how == "parametrization":
        parametrize.register_parametrization(layer, "weight", Double())
    else:
        nn.utils.weight_norm(layer, "weight", dim=None)
    before = bits(model)
    with pytest.raises(HotswapError, match=r"layers.3.down: .*computed at every forward"):
        hotswap.swap(model, fleet["two"])
    with pytest.raises(HotswapError, match="computed"), bank.using("two"):
        pass
    assert same_bits(before, bits(model))
    if how == "parametrization":
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    else:
        nn.utils.remove_weight_norm(layer)
    hotswap.swap(model, fleet["two"])
    torch.testing.assert_close(run(model, X), run(fresh(base, fleet["two"]), X))


class PerTask(nn.Module, LoraLayer):
    """A layer class of somebody's own: factors for each task."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        LoraLayer.__init__(self, layer)
        for held in (self.lora_A, self.lora_B):
            held["default"] = nn.ModuleDict({task: nn.Linear(8, 8) for task in "ab"})
        self.scaling["default"] = 2.0

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.base_layer(value)


def test_a_layer_class_of_ones_own_is_refused_by_name(base: Any, fleet: Any) -> None:
    model = fresh(base, fleet["one"])
    layers = model.base_model.model.layers
    layers[1].up = PerTask(layers[1].up.base_layer)
    before = bits(model)
    refused = r"layers\.1\.up: PerTask holds its lora_A in a ModuleDict"
    with pytest.raises(UnsupportedLayerError, match=refused):
        hotswap.prepare(model, target_rank=4)
    with pytest.raises(UnsupportedLayerError, match=refused):
        hotswap_adapter(model, fleet["two"], "default")
    assert same_bits(before, bits(model))


def test_a_wrapper_of_data_parallel_is_prepared_and_swapped(base: Any, fleet: Any) -> None:
    model = nn.DataParallel(fresh(base, fleet["one"]))
    hotswap.prepare(model, target_rank=4)
    for name in ("two", "one"):
        assert hotswap.swap(model, fleet[name]).path == "arena"
        expected = run(fresh(base, fleet[name]), X)
        torch.testing.assert_close(run(model, X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prepared", [False, True])
def test_names_in_a_file_are_mapped_as_peft_maps_them(
    prepared: bool, base: Any, fleet: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    folder.mkdir()
    for name in ("adapter_config.json", "README.md"):
        (folder / name).write_bytes((fleet["two"] / name).read_bytes())
    tensors = load_file(fleet["two"] / "adapter_model.safetensors")
    old = {key.replace(".layers.", ".blocks."): value for key, value in tensors.items()}
    save_file(old, folder / "adapter_model.safetensors")
    model = fresh(base, fleet["one"])
    if prepared:
        hotswap.prepare(model, target_rank=4)
    with pytest.raises(HotswapError):
        hotswap_adapter(model, folder, "default")
    mapping = {r"^nothing": "x", r"^blocks\.": "layers.", r"layers": "never"}
    hotswap_adapter(model, folder, "default", key_mapping=mapping)
    torch.testing.assert_close(run(model, X), run(fresh(base, fleet["two"]), X))
    with pytest.raises(TypeError, match=r"key_map=.*key_mapping"):
        hotswap_adapter(model, folder, "default", key_map=mapping)
