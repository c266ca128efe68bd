"""Companions stay inside of the plan, layers that no input reaches are judged, interrupts leave a whole."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

import hotswap
from hotswap import AdapterSpec
from hotswap.adapters.fit import fits
from hotswap.adapters.plan import ModulePlan
from hotswap.compiler.compiled import compiled_parts
from hotswap.engine.layout.slots import lora_layers
from hotswap.report.laws import LAWS
from pytest_hotswap import ReferenceSubject
from pytest_hotswap.adapters.companions import companions_of, write_companions
from pytest_hotswap.adapters.derived import break_adapter, kinds_of
from pytest_hotswap.adapters.described import AdapterDescription, write_adapter
from pytest_hotswap.contract.contract import HotswapContract
from pytest_hotswap.contract.deployment import Deployment
from pytest_hotswap.contract.judge import violations
from pytest_hotswap.contract.placed import misplaced, unreached
from pytest_hotswap.contract.preparation import OF_A_LAYER, STYLES
from pytest_hotswap.contract.settings import changed, loud, settings, unusual
from pytest_hotswap.contract.surroundings import lived_in
from tests.mutants.subject import Engine, write_fleets
from tests.support.models import TOKENS, seeded, write_fleet


class TwoKinds(nn.Module):
    """A request of text does not take the branch of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.text, self.pictures = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, tokens: torch.Tensor, pictures: torch.Tensor | None = None) -> torch.Tensor:
        found = self.text(self.embed(tokens))
        return found if pictures is None else found + self.pictures(pictures)


class Sound(ReferenceSubject):
    def base_model(self) -> Any:
        return seeded(TwoKinds)

    def inputs(self) -> dict[str, Any]:
        return {"tokens": TOKENS}


class SkipsPictures(Sound):
    """The branch that is not taken keeps the adapter before."""

    def swap(self, model: Any, adapter: Path | None) -> None:
        layer = lora_layers(model)["pictures"].lora_B["default"]
        kept = layer.weight.detach().clone()
        super().swap(model, adapter)
        layer.weight.data.copy_(kept)


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def adapters(tmp_path: Path) -> str:
    targets = ["text", "pictures"]
    fleet: dict[str, dict[str, Any]] = {
        "one": {"r": 2, "lora_alpha": 4, "target_modules": targets},
        "two": {"r": 3, "lora_alpha": 3, "target_modules": targets},
    }
    write_fleet(tmp_path / "fleet", seeded(TwoKinds), fleet)
    return str(tmp_path / "fleet" / "*")


def test_a_layer_that_no_input_reaches_is_named_and_judged(adapters: str, tmp_path: Path) -> None:
    sound = Deployment(Sound(adapters=[adapters]), tmp_path / "sound")
    assert list(violations(sound, "swap-equals-load")) == []
    assert unreached(sound) == ["pictures"]
    faulty = Deployment(SkipsPictures(adapters=[adapters]), tmp_path / "faulty")
    faulty.swap(faulty.paths[1])
    assert faulty.compare(faulty.paths[1]).equal  # the outputs show nothing
    assert misplaced(faulty, faulty.paths[1]) == [
        "pictures does not hold what the file has: lora_B.weight"
    ]
    assert any("pictures" in found for found in violations(faulty, "swap-equals-load"))


def test_a_fleet_of_one_adapter_obeys(adapters: str, tmp_path: Path) -> None:
    alone = Deployment(Sound(adapters=[adapters.replace("*", "one")]), tmp_path / "alone")
    assert {law: found for law in LAWS if (found := [*violations(alone, law)])} == {}


class ScalesText(Sound):
    """A factor passes over the layer that no input reaches."""

    def set_scale(self, model: Any, scale: float) -> None:
        scaling = lora_layers(model)["pictures"].scaling["default"]
        kept = float(scaling)
        super().set_scale(model, scale)
        with torch.no_grad():
            scaling.fill_(kept)


def test_a_factor_that_passes_over_a_layer_is_seen(adapters: str, tmp_path: Path) -> None:
    faulty = Deployment(ScalesText(adapters=[adapters]), tmp_path / "faulty")
    (found,) = violations(faulty, "knobs-follow")
    assert "pictures does not hold what the file has: scaling" in found


def test_what_a_user_has_set_is_taken_back() -> None:
    model = get_peft_model(seeded(TwoKinds), LoraConfig(target_modules=["text", "pictures"]))
    model.base_model.model.text.eval()

    def state() -> list[Any]:
        parameters = [(p.requires_grad, p.grad) for p in model.parameters()]
        hooks = [len(module._forward_hooks) for module in model.modules()]
        return [parameters, hooks, [module.training for module in model.modules()]]

    before = state()
    for on in (True, False):
        with lived_in(model, on=on):
            now = state()
            assert now[2] == [on] * len(now[2])
            assert sum(now[1]) == sum(before[1]) + 1
            assert any(grad is not None for _, grad in now[0]) == on
        assert state() == before


def test_companions_are_the_same_at_every_call_and_fit_the_plan(tmp_path: Path) -> None:
    write_fleets(tmp_path)
    for fleet in ("fleet", "features"):
        plan = hotswap.plan([*map(str, sorted((tmp_path / fleet).iterdir()))])
        assert companions_of(plan, "all") == companions_of(plan, "all")
        few, everything = companions_of(plan, "few"), companions_of(plan, "all")
        assert few.keys() < everything.keys()
        assert companions_of(plan, "none") == {}
        found, left = write_companions(tmp_path / f"{fleet}-companions", plan, "all")
        assert (found.keys(), left) == (everything.keys(), {})
        assert all(not fits(plan, AdapterSpec.read(path)) for path in found.values())
        assert ("DoRA" in few) == (fleet == "features")


def test_another_word_for_companions_is_refused() -> None:
    with pytest.raises(ValueError, match="'some'; expected one of none, few, all"):
        companions_of(hotswap.SwapPlan({}), "some")  # type: ignore[arg-type]


def test_what_torch_noted_in_a_control_hides_no_recompile(tmp_path: Path) -> None:
    """The number that the control changed would be compiled as dynamic afterwards."""
    write_fleets(tmp_path)

    class FirstScalingIsANumber(Engine):
        def swap(self, model: Any, adapter: Path | None) -> None:
            super().swap(model, adapter)
            self.models(model)[0].base_model.model.number = float(len(str(adapter)))

        def base_model(self) -> Any:
            model = super().base_model()
            model.number = 1.0
            model.register_forward_hook(lambda module, _, output: output + 0 * module.number)
            return model

    deployment = Deployment(FirstScalingIsANumber(tmp_path), tmp_path / "numbers")
    assert deployment.unprepared_recompiles["another alpha"]
    assert any("recompiled" in found for found in violations(deployment, "zero-recompiles"))


def test_what_a_model_notes_of_itself_in_its_first_call_is_no_fault_of_the_control(
    tmp_path: Path,
) -> None:
    """As RWKV does, whose second call is compiled once more for it."""
    write_fleets(tmp_path)

    def note(module: Any, _: Any) -> None:
        if not module.noted:
            module.noted = True

    class NotesItsFirstCall(Engine):
        def base_model(self) -> Any:
            model = super().base_model()
            model.noted = False
            model.register_forward_pre_hook(note)
            return model

    deployment = Deployment(NotesItsFirstCall(tmp_path), tmp_path / "notes")
    assert deployment.unprepared_recompiles["no swap"] == []
    assert deployment.unprepared_recompiles["another alpha"]


def test_patterns_by_the_ends_of_names_say_what_the_description_says(tmp_path: Path) -> None:
    names = ["layers.1.q", "layers.10.q", "layers.1.qq", "q"]
    plan = hotswap.SwapPlan({name: ModulePlan("linear", 4, 4, 6) for name in names})
    described = AdapterDescription(
        2,
        0,
        rank_pattern=((names[0], 1), (names[2], 3)),
        alpha_pattern=((names[1], -2.5), (names[3], 7.0)),
        loose=True,
    )
    path = write_adapter(tmp_path / "loose", described, plan)
    config = json.loads((path / "adapter_config.json").read_text())
    assert not any(key.startswith("^") for key in config["rank_pattern"])
    for text in (config, json.loads(json.dumps(config, sort_keys=True))):  # as PEFT saves it
        (path / "adapter_config.json").write_text(json.dumps(text))
        spec = AdapterSpec.read(path)
        assert not fits(plan, spec)
        assert {name: module.rank for name, module in spec.modules.items()} == {
            "layers.1.q": 1,
            "layers.10.q": 2,
            "layers.1.qq": 3,
            "q": 2,
        }
        assert [spec.modules[name].alpha for name in names] == [0.0, -2.5, 0.0, 7.0]


def test_an_adapter_is_negated_under_the_same_config(adapters: str, tmp_path: Path) -> None:
    deployment = Deployment(Sound(adapters=[adapters]), tmp_path / "negated")
    one, other = deployment.first, deployment.negated
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert [(one / f).stat().st_size for f in files] == [(other / f).stat().st_size for f in files]
    base = deployment.expected(None)
    torch.testing.assert_close(deployment.expected(other) - base, base - deployment.expected(one))


def test_each_kind_of_tensor_is_known_and_can_be_broken(tmp_path: Path) -> None:
    write_fleets(tmp_path)
    kinds = kinds_of(tmp_path / "wholes" / "both")
    assert list(kinds) == [
        "token rows",
        "lora_A.weight",
        "lora_B.weight",
        "saved weight",
        "saved bias",
        "saved running_mean",
        "saved running_var",
    ]
    assert kinds_of(tmp_path / "features" / "bias").keys() > {"lora_B.bias"}
    assert kinds_of(tmp_path / "features" / "dora").keys() > {"lora_magnitude_vector"}
    assert kinds_of(tmp_path / "fleet" / "small").keys() > {"lora_embedding_A", "lora_embedding_B"}
    source = tmp_path / "wholes" / "both"
    for key, defects in kinds.values():
        for defect, axis in defects:
            folder = tmp_path / f"{key} {defect} {axis}"
            bad = break_adapter(source, folder, defect, key=key, axis=axis)
            then, now = (load_file(path / "adapter_model.safetensors") for path in (source, bad))
            changed = [k for k in then if k not in now or not torch.equal(then[k], now[k])]
            assert changed == [key]


def test_unusual_settings_are_seen_and_taken_back() -> None:
    kept = settings() | loud()
    for on in (True, False):
        with unusual(on=on, environment={"ONLY": "this"}):
            now = settings() | loud()
            assert (now["grad mode"], now["garbage collection"]) == (on, on)
            assert now["the environment"] == {"ONLY": "this"}
            assert changed(now, settings() | loud()) == []
            logging.getLogger("peft").setLevel(logging.ERROR)
            warnings.simplefilter("ignore")
            torch.set_float32_matmul_precision("high")
            assert changed(now, settings() | loud()) == [
                "the precision of matrix products changed",
                "the filters of warnings changed",
                "the levels of loggers changed",
            ]
    assert changed(kept, settings() | loud()) == []


def test_a_model_without_layers_of_pefts_is_not_judged_by_what_is_done_to_one() -> None:
    subject = SimpleNamespace(adapter_name="default", backend="eager")
    deployment: Any = SimpleNamespace(subject=subject, module_of=lambda model: model)
    deployment.loaded = lambda: nn.Linear(2, 2)
    laws = HotswapContract()
    with pytest.raises(pytest.skip.Exception, match="has no LoRA layer of PEFT's"):
        laws.test_preparation_covers__odd_layer(deployment, "below a wrapper")
    for style in OF_A_LAYER:
        with pytest.raises(pytest.skip.Exception, match="has no LoRA layer of PEFT's"):
            laws.test_prepare_before_compile(deployment, style)


def test_a_block_is_replaced_by_its_compiled_wrapper(adapters: str) -> None:
    model = Sound(adapters=[adapters])
    loaded = model.load(model.base_model(), Path(adapters.replace("*", "one")))
    for style in STYLES.values():
        assert compiled_parts(style(copy.deepcopy(loaded), "eager"))
    assert not compiled_parts(loaded)
