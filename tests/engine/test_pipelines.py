"""hotswap.engine on pipelines: pipelines and models of diffusers, built from configs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.adapters.files import DIFFUSERS_WEIGHTS as WEIGHTS
from hotswap.engine.layout.placement import Placement
from hotswap.engine.layout.registry import placement_of
from hotswap.engine.parts import parts_of
from hotswap.errors import (
    AdapterError,
    AlreadyCompiledError,
    HotswapError,
    NoAdapterError,
    RankTooLargeError,
    UnreadableAdapterError,
)
from tests.support.pipelines import flux, outputs, stable_diffusion, write_pipeline_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

Make = Callable[[], Any]
FLEET: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "lora_alpha": 3},
    "large": {"r": 8, "lora_alpha": 3},
    "patterned": {"r": 4, "rank_pattern": {"to_q": 6}, "alpha_pattern": {"q_proj": 1}},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "plain": {"r": 4, "lora_alpha": 4, "metadata": False},
    "denoiser": {"r": 4, "lora_alpha": 2, "encoder": False},
}


@pytest.fixture(scope="module", params=[stable_diffusion, flux], ids=["unet", "transformer"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("pipeline")
    return lambda: request.param(folder)


@pytest.fixture(scope="module")
def denoiser(make: Make) -> str:
    return "unet" if hasattr(make(), "unet") else "transformer"


@pytest.fixture(scope="module")
def fleet(make: Make, denoiser: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fleet")
    found = {}
    for seed, (name, config) in enumerate(FLEET.items()):
        options = dict(config)
        parts = (denoiser, "text_encoder") if options.pop("encoder", True) else (denoiser,)
        found[name] = write_pipeline_adapter(
            folder / name, make(), seed=seed, parts=parts, **options
        )
    return found


def loaded(make: Make, adapter: Any) -> Any:
    pipeline = make()
    pipeline.load_lora_weights(adapter if isinstance(adapter, dict) else str(adapter))
    return pipeline


def prepared(make: Make, adapter: Any, rank: int = 8) -> Any:
    pipeline = loaded(make, adapter)
    hotswap.prepare(pipeline, target_rank=rank)
    return pipeline


def bits(pipeline: Any) -> list[torch.Tensor]:
    return [
        value.detach().clone()
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for value in (*part.parameters(), *part.buffers())
    ]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor], exact: bool = False) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def differs(one: list[torch.Tensor], other: list[torch.Tensor]) -> list[bool]:
    return [not torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True)]


def test_every_swap_equals_a_fresh_load_of_every_component(make: Make, fleet: Any) -> None:
    pipeline, base = prepared(make, fleet["small"]), outputs(make())
    for name in (*FLEET, "small"):
        report = hotswap.swap(pipeline, fleet[name])
        assert_same(outputs(pipeline), outputs(loaded(make, fleet[name])))
        assert differs(outputs(pipeline), base) == [name != "denoiser", True]
        assert report.adapter == hotswap.active(pipeline) == str(fleet[name])
        assert report.path == "arena"
    hotswap.swap(pipeline, None)
    assert_same(outputs(pipeline), base, exact=True)
    assert hotswap.active(pipeline) is None


def test_what_a_file_takes_out_of_a_component_is_said_and_a_dict_keeps_it(
    make: Make, denoiser: str, fleet: Any
) -> None:
    pipeline = prepared(make, fleet["small"])
    report = hotswap.swap(pipeline, fleet["large"])
    assert (report.kept, report.emptied) == ((), ())
    assert set(report.components.values()) == {str(fleet["large"])}
    report = hotswap.swap(pipeline, {denoiser: fleet["denoiser"]})
    assert (report.kept, report.emptied) == (("text_encoder",), ())
    assert_same(outputs(pipeline)[:1], outputs(loaded(make, fleet["large"]))[:1])
    report = hotswap.swap(pipeline, fleet["denoiser"])
    assert (report.kept, report.emptied) == ((), ("text_encoder",))
    assert report.components == {denoiser: str(fleet["denoiser"]), "text_encoder": None}
    assert hotswap.swap(pipeline, fleet["denoiser"]).emptied == ()  # there was none any more
    hotswap.swap(pipeline, {"text_encoder": fleet["small"]})  # of a file of both, its own
    assert_same(outputs(pipeline)[:1], outputs(loaded(make, fleet["small"]))[:1])


def test_prepare_reports_every_component_and_keeps_the_outputs(
    make: Make, denoiser: str, fleet: Any
) -> None:
    pipeline = loaded(make, fleet["patterned"])
    before = outputs(pipeline)
    report = hotswap.prepare(pipeline, target_rank=8)
    assert {name.partition(".")[0] for name in report.ranks} == {denoiser, "text_encoder"}
    assert set(report.ranks.values()) == {8}
    assert_same(outputs(pipeline), before)
    assert hotswap.prepare(pipeline, target_rank=8).padded == 0


def test_adapters_of_other_modules_swap_in_a_pipeline_loaded_with_their_plan(
    make: Make, denoiser: str, fleet: Any, tmp_path: Path
) -> None:
    parts = (denoiser, "text_encoder")
    other = {
        "targets": {"r": 3, "target_modules": ["to_out.0", "out_proj", "to_k"]},
        "rooted": {"r": 2, "target_modules": ["to_q", "q_proj"], "use_rslora": True},
    }
    paths = {name: fleet[name] for name in ("small", "patterned", "plain", "denoiser")}
    for seed, (name, config) in enumerate(other.items(), 20):
        paths[name] = write_pipeline_adapter(
            tmp_path / name, make(), seed=seed, parts=parts, **config
        )
    plan, base = hotswap.plan([*paths.values()]), outputs(make())
    pipeline = hotswap.load(make(), plan, paths["rooted"])
    assert_same(outputs(pipeline), outputs(loaded(make, paths["rooted"])))
    held = sum(placement_of(part.model, "default").layout.bytes for part in parts_of(pipeline))
    assert held == plan.padded_bytes
    with pytest.raises(HotswapError, match="carries LoRA layers already"):
        hotswap.load(pipeline, plan, paths["rooted"])
    one = hotswap.plan([paths["denoiser"]])
    served = loaded(make, paths["small"])
    getattr(served, denoiser).unload_lora()
    before = bits(served)
    with pytest.raises(HotswapError, match="text_encoder carries LoRA layers already"):
        hotswap.load(served, one, paths["denoiser"])
    assert_same(bits(served), before, exact=True)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((paths["small"] / WEIGHTS).read_bytes()[:-7])
    other = make()
    with pytest.raises(UnreadableAdapterError):
        hotswap.load(other, plan, damaged)
    assert_same(outputs(other), base, exact=True)
    with pytest.raises(NoAdapterError):
        parts_of(other)
    for name in (*paths, "small"):
        hotswap.swap(pipeline, paths[name])
        assert_same(outputs(pipeline), outputs(loaded(make, paths[name])))
    hotswap.swap(pipeline, None)
    assert_same(outputs(pipeline), base)


def test_a_plan_prepares_the_components_that_carry_an_adapter(
    make: Make, denoiser: str, fleet: Any
) -> None:
    names = ("small", "patterned", "denoiser")
    plan = hotswap.plan([fleet[name] for name in names])
    pipeline = loaded(make, fleet["small"])
    report = hotswap.prepare(pipeline, plan=plan)
    assert set(report.ranks.values()) == {4, 6}
    for name in names:
        hotswap.swap(pipeline, fleet[name])
        assert_same(outputs(pipeline), outputs(loaded(make, fleet[name])))
    with pytest.raises(HotswapError, match="text_encoder carries an adapter, but the plan has no"):
        hotswap.prepare(loaded(make, fleet["small"]), plan=hotswap.plan([fleet["denoiser"]]))
    only = loaded(make, fleet["denoiser"])
    before = bits(only)
    with pytest.raises(HotswapError, match=r"text_encoder.*is in no component"):
        hotswap.prepare(only, plan=plan)
    assert_same(bits(only), before, exact=True)
    only = loaded(make, fleet["denoiser"])  # a plan of one component has no component in its names
    hotswap.prepare(only, plan=hotswap.plan([fleet["denoiser"]]))
    hotswap.swap(only, fleet["denoiser"])
    assert_same(outputs(only), outputs(loaded(make, fleet["denoiser"])))


def test_compiled_components_do_not_recompile(make: Make, denoiser: str, fleet: Any) -> None:
    pipeline = prepared(make, fleet["small"])
    for part in (denoiser, "text_encoder"):
        setattr(pipeline, part, torch.compile(getattr(pipeline, part), backend="eager"))
    outputs(pipeline)
    with hotswap.forbid_recompiles():
        for name in ("large", "denoiser", "patterned", "small"):
            hotswap.swap(pipeline, fleet[name])
            assert_same(outputs(pipeline), outputs(loaded(make, fleet[name])))
        hotswap.swap(pipeline, None)
        assert_same(outputs(pipeline), outputs(make()))
    torch.compiler.reset()


def test_prepare_refuses_a_compiled_component_before_any_changes(
    make: Make, denoiser: str, fleet: Any
) -> None:
    pipeline = loaded(make, fleet["small"])
    pipeline.text_encoder.compile(backend="eager")
    before = bits(pipeline)
    with pytest.raises(AlreadyCompiledError):
        hotswap.prepare(pipeline, target_rank=8)
    assert_same(before, bits(pipeline), exact=True)


@pytest.mark.parametrize("fail_at", [0, 1])
def test_whatever_fails_every_component_is_as_it_was(
    make: Make, fleet: Any, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    pipeline = prepared(make, fleet["small"])
    hotswap.swap(pipeline, fleet["patterned"])
    before, configs, put = bits(pipeline), saved_configs(pipeline), Placement.put
    calls = iter(range(100))

    def failing(self: Placement, *args: Any, **kwargs: Any) -> None:
        put(self, *args, **kwargs)
        if next(calls) == fail_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Placement, "put", failing)
    with pytest.raises(KeyboardInterrupt):
        hotswap.swap(pipeline, fleet["large"])
    monkeypatch.setattr(Placement, "put", put)
    assert_same(before, bits(pipeline), exact=True)
    assert saved_configs(pipeline) == configs
    assert hotswap.active(pipeline) == str(fleet["patterned"])
    hotswap.swap(pipeline, fleet["large"])
    assert_same(outputs(pipeline), outputs(loaded(make, fleet["large"])))


def saved_configs(pipeline: Any) -> list[dict[str, Any]]:
    return [
        part.peft_config["default_0"].to_dict()
        for part in pipeline.components.values()
        if hasattr(part, "peft_config")
    ]


def test_a_bad_value_in_the_last_component_changes_nothing(
    make: Make, fleet: Any, tmp_path: Path
) -> None:
    pipeline = prepared(make, fleet["small"])
    before = bits(pipeline)
    tensors = load_file(fleet["small"] / WEIGHTS)
    name = next(name for name in tensors if name.startswith("text_encoder."))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(AdapterError, match=r"::text_encoder::.*NaN"):
        hotswap.swap(pipeline, tmp_path / "bad.safetensors")
    assert_same(before, bits(pipeline), exact=True)


def test_a_larger_rank_and_an_unknown_component_are_refused(
    make: Make, denoiser: str, fleet: Any
) -> None:
    pipeline = prepared(make, fleet["small"], rank=4)
    before = bits(pipeline)
    with pytest.raises(RankTooLargeError):
        hotswap.swap(pipeline, fleet["large"])
    only = prepared(make, fleet["denoiser"])
    with pytest.raises(AdapterError, match=r"::text_encoder.*carries no LoRA layer"):
        hotswap.swap(only, fleet["small"])
    assert_same(before, bits(pipeline), exact=True)
    with pytest.raises(NoAdapterError, match="load_lora_weights"):
        hotswap.swap(make(), fleet["small"])
    with pytest.raises(TypeError, match="got a int"):
        hotswap.swap(3, fleet["small"])


def test_damaged_and_missing_files_are_refused(make: Make, fleet: Any, tmp_path: Path) -> None:
    pipeline = prepared(make, fleet["small"])
    data = (fleet["small"] / WEIGHTS).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-7])
    for path in (tmp_path / "cut.safetensors", tmp_path / "missing"):
        with pytest.raises(UnreadableAdapterError):
            hotswap.swap(pipeline, path)
    assert_same(outputs(pipeline), outputs(loaded(make, fleet["small"])))


def test_a_scale_holds_for_every_component_until_the_next_swap(make: Make, fleet: Any) -> None:
    pipeline = prepared(make, fleet["large"])
    full = outputs(pipeline)
    hotswap.set_scale(pipeline, 0.5)
    assert differs(outputs(pipeline), full) == [True, True]
    assert hotswap.swap(pipeline, fleet["large"]).scale_reset == pytest.approx(0.5)
    assert_same(outputs(pipeline), full)


def test_a_state_dict_is_swapped_as_a_fresh_load_would(make: Make, fleet: Any) -> None:
    pipeline, tensors = prepared(make, fleet["small"]), load_file(fleet["plain"] / WEIGHTS)
    assert hotswap.swap(pipeline, tensors).adapter == "state dict"
    assert_same(outputs(pipeline), outputs(loaded(make, fleet["plain"])))


def test_what_is_saved_after_a_swap_loads_equal(
    make: Make, denoiser: str, fleet: Any, tmp_path: Path
) -> None:
    pipeline = prepared(make, fleet["small"])
    hotswap.swap(pipeline, fleet["patterned"])
    arguments: dict[str, Any] = {}
    for part in (denoiser, "text_encoder"):
        model = getattr(pipeline, part)
        layers = get_peft_model_state_dict(model, adapter_name="default_0")
        arguments[f"{part}_lora_layers"] = layers
        arguments[f"{part}_lora_adapter_metadata"] = model.peft_config["default_0"].to_dict()
    type(pipeline).save_lora_weights(tmp_path, **arguments)
    assert_same(outputs(loaded(make, tmp_path)), outputs(pipeline))


def test_diffusers_own_hot_swapping_runs_on_the_engine(
    make: Make, denoiser: str, fleet: Any, tmp_path: Path
) -> None:
    other = write_pipeline_adapter(tmp_path, make(), seed=9, parts=(denoiser,), r=7, lora_alpha=2)
    pipeline = make()
    with hotswap.patch_peft():
        pipeline.enable_lora_hotswap(target_rank=8)
        pipeline.load_lora_weights(str(fleet["denoiser"]))
        setattr(pipeline, denoiser, torch.compile(getattr(pipeline, denoiser), backend="eager"))
        outputs(pipeline)
        with hotswap.forbid_recompiles():
            for adapter in (other, fleet["denoiser"]):
                pipeline.load_lora_weights(str(adapter), hotswap=True, adapter_name="default_0")
                assert_same(outputs(pipeline), outputs(loaded(make, adapter)))
    torch.compiler.reset()


def test_a_model_by_itself_is_prepared_and_swapped(
    make: Make, denoiser: str, fleet: Any, tmp_path: Path
) -> None:
    def fresh(adapter: Any) -> Any:
        pipeline = make()
        prefix = None if adapter in own else denoiser
        getattr(pipeline, denoiser).load_lora_adapter(
            str(adapter), prefix=prefix, use_safetensors=True
        )
        return pipeline

    own = []
    for rank in (3, 5):
        model = getattr(make(), denoiser)
        config = LoraConfig(r=rank, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False)
        model.add_adapter(config, adapter_name="mine")
        model.save_lora_adapter(tmp_path / str(rank), adapter_name="mine")
        own.append(tmp_path / str(rank))
    pipeline = fresh(fleet["denoiser"])
    model = getattr(pipeline, denoiser)
    hotswap.prepare(model, target_rank=8)
    for adapter in (*own, fleet["denoiser"], own[0] / WEIGHTS, own[1]):
        hotswap.swap(model, adapter)
        folder = adapter.parent if adapter.suffix else adapter
        assert_same(outputs(pipeline), outputs(fresh(folder)))
    model.save_lora_adapter(tmp_path / "saved", adapter_name="default_0")
    own.append(tmp_path / "saved")
    assert_same(outputs(fresh(own[-1])), outputs(pipeline))
    bank = hotswap.AdapterBank(model, adapter_name="default_0")
    bank.add("first", own[0])
    with bank.using("first"):
        assert_same(outputs(pipeline), outputs(fresh(own[0])))


def test_files_of_one_model_that_say_too_little_are_refused(
    make: Make, denoiser: str, fleet: Any, tmp_path: Path
) -> None:
    model = getattr(prepared(make, fleet["denoiser"]), denoiser)
    good = load_file(fleet["denoiser"] / WEIGHTS)
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, str] | None]] = {
        "names other than PEFT's": ({"to_q.down": torch.zeros(2, 2)}, None),
        "no LoRA config": (good, {"lora_adapter_metadata": json.dumps({f"{denoiser}.rank": 4})}),
        "no valid JSON|not valid JSON": (good, {"lora_adapter_metadata": "[1"}),
    }
    for text, (tensors, metadata) in cases.items():
        save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
        with pytest.raises(UnreadableAdapterError, match=text):
            hotswap.swap(model, tmp_path / "bad.safetensors")


def test_a_file_of_kohya_is_swapped_as_diffusers_loads_it(tmp_path: Path) -> None:
    def make_sd() -> Any:
        return stable_diffusion(tmp_path)

    generator = torch.Generator().manual_seed(5)
    tensors = {}
    pipeline = make_sd()
    for kind, part, ends, rank in (
        ("lora_unet", pipeline.unet, ("attn1.to_q", "attn2.to_v"), 3),
        ("lora_te", pipeline.text_encoder, ("q_proj", "v_proj", "out_proj"), 4),
    ):
        for name, module in part.named_modules():
            if name.endswith(ends):
                if kind == "lora_te" and not name.startswith("text_model."):
                    name = f"text_model.{name}"
                key = f"{kind}_{name.replace('.', '_')}"
                out, into = module.weight.shape
                tensors[f"{key}.lora_down.weight"] = torch.randn(rank, into, generator=generator)
                tensors[f"{key}.lora_up.weight"] = torch.randn(out, rank, generator=generator)
                tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    first = write_pipeline_adapter(
        tmp_path / "first",
        make_sd(),
        seed=1,
        parts=("unet", "text_encoder"),
        r=2,
        target_modules=["to_q", "to_v", "q_proj", "v_proj", "out_proj"],
    )
    pipeline = prepared(make_sd, first)
    hotswap.swap(pipeline, tmp_path / "kohya.safetensors")
    reference = loaded(make_sd, tmp_path / "kohya.safetensors")
    assert_same(outputs(pipeline), outputs(reference))
    assert differs(outputs(pipeline), outputs(make_sd())) == [True, True]
