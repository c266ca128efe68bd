"""Files for pipelines in the names of every trainer: planned, checked and swapped as diffusers loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.adapters.formats import trainers
from hotswap.adapters.formats.conversion import Converted, converted, infos
from hotswap.adapters.inspect import Inspector
from hotswap.adapters.reader import SpecReader
from hotswap.adapters.spec import AdapterSpec
from hotswap.adapters.texts import Family
from hotswap.engine.parts import parts_of
from hotswap.errors import AdapterError, UnreadableAdapterError
from tests.support.pipelines import flux, stable_diffusion, write_pipeline_adapter

pytestmark = pytest.mark.filterwarnings("ignore")
Tensors = dict[str, torch.Tensor]
UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_model.encoder.layers.0.self_attn"


def pair(key: str, out: int, into: int, names: tuple[str, str], rank: int = 4) -> Tensors:
    generator = torch.Generator().manual_seed(sum(map(ord, key)))
    return {
        f"{key}.{names[0]}.weight": torch.randn(rank, into, generator=generator) * 0.3,
        f"{key}.{names[1]}.weight": torch.randn(out, rank, generator=generator) * 0.3,
    }


KOHYA, PEFT, OLD = ("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up")
TEXT_OLD, XLABS = ("lora_linear_layer.down", "lora_linear_layer.up"), ("down", "up")


def with_alpha(tensors: Tensors, alpha: float = 2.0) -> Tensors:
    keys = {name.rpartition(".lora")[0] for name in tensors}
    return {**tensors, **{f"{key}.alpha": torch.tensor(alpha) for key in keys}}


def kohya_unet() -> Tensors:
    found: Tensors = {}
    for part in ("to_q", "to_out.0"):
        found |= pair(f"lora_unet_{UNET}.{part}".replace(".", "_"), 8, 8, KOHYA)
    for part in ("q_proj", "out_proj"):
        found |= pair(f"lora_te_{TEXT}.{part}".replace(".", "_"), 16, 16, KOHYA, 2)
    return found


def old_names() -> Tensors:
    found = pair(f"unet.{UNET}.to_q", 8, 8, OLD) | pair(f"unet.{UNET}.to_v", 8, 8, OLD)
    return found | pair(f"text_encoder.{TEXT}.v_proj", 16, 16, TEXT_OLD)


FLUX = "transformer_blocks.0.attn"
FILES: dict[str, tuple[Callable[[Path], Any], Tensors]] = {
    "kohya": (stable_diffusion, with_alpha(kohya_unet())),
    "kohya without alpha": (stable_diffusion, kohya_unet()),
    "kohya with dora_scale": (
        stable_diffusion,
        with_alpha(kohya_unet())
        | {f"lora_unet_{UNET}.to_q.dora_scale".replace(".", "_", 6): torch.ones(8, 1)},
    ),
    "names of older diffusers": (stable_diffusion, old_names()),
    "alpha beside": (flux, with_alpha(pair(f"transformer.{FLUX}.to_q", 32, 32, PEFT))),
    "xlabs": (
        flux,
        pair("double_blocks.0.processor.proj_lora1", 32, 32, XLABS)
        | pair("double_blocks.0.processor.qkv_lora2", 96, 32, XLABS),
    ),
    "original Flux, of ComfyUI": (
        flux,
        with_alpha(pair("diffusion_model.double_blocks.0.img_attn.qkv", 96, 32, KOHYA)),
    ),
    "kohya of Flux": (
        flux,
        with_alpha(pair("lora_unet_double_blocks_0_img_attn_proj", 32, 32, KOHYA)),
    ),
    "kohya of Flux, fused": (
        flux,
        with_alpha(pair("lora_unet_double_blocks_0_txt_attn_qkv", 96, 32, KOHYA)),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_checked_planned_loaded_and_swapped_as_diffusers_loads_it(
    name: str, tmp_path: Path
) -> None:
    make, tensors = FILES[name]
    file = tmp_path / "own.safetensors"
    save_file(tensors, file)
    reference = make(tmp_path)
    reference.load_lora_weights(str(file))
    expected = weights(reference)
    assert any(delta.any() for delta in expected.values())
    assert [f for f in Inspector()(str(file)).findings if f.severity == "error"] == []
    plan = hotswap.plan([file])
    loaded = hotswap.load(make(tmp_path), plan, file)
    compare(weights(loaded), expected)
    hotswap.swap(loaded, None)
    assert not any(delta.any() for delta in weights(loaded).values())
    hotswap.swap(loaded, file)
    compare(weights(loaded), expected)
    hotswap.swap(loaded, load_file(file))
    compare(weights(loaded), expected)


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    """What the adapter in place adds to the weights of each layer, scaled."""
    found = {}
    for part in parts_of(pipeline):
        for name, layer in part.model.named_modules():
            if hasattr(layer, "lora_A") and isinstance(layer.base_layer, torch.nn.Linear):
                adapter = next(iter(layer.lora_A))
                product = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
                found[f"{part.key}.{name}"] = product.detach() * float(layer.scaling[adapter])
    return found


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


WAN, ANIMA = "diffusion_model.blocks.0", "diffusion_model.blocks.0.self_attn.q_proj"
LAYER = "diffusion_model.layers.0"
ONLY_READ: dict[str, tuple[Tensors, set[str]]] = {
    "Wan of ComfyUI": (
        pair(f"{WAN}.self_attn.q", 24, 24, KOHYA) | pair(f"{WAN}.ffn.0", 32, 24, KOHYA),
        {"blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj"},
    ),
    "Krea2Pipeline": (
        pair(f"{WAN}.attn.wq", 16, 16, PEFT),
        {"transformer_blocks.0.attn.to_q"},
    ),
    "AnimaModularPipeline": (pair(ANIMA, 16, 16, PEFT), {"transformer_blocks.0.attn1.to_q"}),
    "Ideogram4Pipeline": (
        pair(f"{LAYER}.attention.qkv", 48, 16, PEFT) | pair(f"{LAYER}.attention.o", 16, 16, PEFT),
        {f"layers.0.attention.to_{part}" for part in ("q", "k", "v", "out.0")},
    ),
    "Flux3ModularPipeline": (
        pair("diffusion_model.content_mode_blocks.0.q_proj", 16, 16, PEFT),
        {"mode_blocks.0.attn.to_q"},
    ),
    "MiniMaxH3ModularPipeline": (
        pair("lora_unet_blocks_0_attn_qkv_proj", 48, 16, KOHYA),
        {f"transformer_blocks.0.attn.to_{part}" for part in "qkv"},
    ),
    "LTX2Pipeline": (
        pair("diffusion_model.transformer_blocks.0.audio_attn1.to_q", 16, 16, PEFT),
        {"transformer_blocks.0.audio_attn1.to_q"},
    ),
    "HiDreamImagePipeline": (
        pair("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 16, 16, PEFT),
        {"double_stream_blocks.0.block.attn1.to_q"},
    ),
    "Lumina2Pipeline": (
        {
            name: value
            for layer, out, into in (
                *(("attention.qkv", 3840, 2304), ("attention.out", 2304, 2304)),
                *(("feed_forward.w1", 96, 2304), ("feed_forward.w2", 2304, 96)),
                *(("feed_forward.w3", 96, 2304), ("adaLN_modulation.1", 96, 16)),
            )
            for name, value in pair(f"{LAYER}.{layer}", out, into, PEFT).items()
        },
        {f"layers.0.attn.to_{part}" for part in ("q", "k", "v", "out.0")}
        | {f"layers.0.feed_forward.linear_{number}" for number in (1, 2, 3)}
        | {"layers.0.norm1.linear"},
    ),
}


@pytest.mark.parametrize("name", ONLY_READ)
def test_names_of_a_family_are_found_without_being_told(name: str, tmp_path: Path) -> None:
    if name.endswith("Pipeline") and not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    tensors, expected = ONLY_READ[name]
    save_file(tensors, tmp_path / "own.safetensors")
    spec = AdapterSpec.read(tmp_path / "own.safetensors")
    assert spec.findings == ()
    assert (set(spec.modules), spec.components) == (expected, ("transformer",))


def test_files_of_one_header_have_alphas_of_their_own(tmp_path: Path) -> None:
    files, reader, inspector = [], SpecReader(), Inspector()
    for alpha in (1.0, 4.0):
        file = tmp_path / f"{alpha}.safetensors"
        save_file(with_alpha(kohya_unet(), alpha), file)
        files.append(file)
        assert inspector(str(file)).findings == ()
        assert {m.alpha for m in reader.spec(str(file)).modules.values()} == {alpha}
    reference = stable_diffusion(tmp_path)
    reference.load_lora_weights(str(files[1]))
    pipeline = hotswap.load(stable_diffusion(tmp_path), hotswap.plan(files), files[0])
    hotswap.swap(pipeline, files[1])
    compare(weights(pipeline), weights(reference))


@pytest.mark.parametrize(("rank", "sparse"), [(3, False), (3, True), (6, True), (4, False)])
def test_fused_weights_are_split_by_whether_they_are_sparse(
    rank: int, sparse: bool, tmp_path: Path
) -> None:
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = pair(name, 96, 32, KOHYA, rank)
    if sparse:  # each of q, k and v has columns of its own
        blocks = torch.block_diag(*[torch.ones(32, rank // 3)] * 3)
        tensors[f"{name}.lora_up.weight"] *= blocks
    file = tmp_path / "own.safetensors"
    save_file(with_alpha(tensors, 2.0), file)
    reference = flux(tmp_path)
    reference.load_lora_weights(str(file))
    assert [f for f in Inspector()(str(file)).findings if f.severity == "error"] == []
    loaded = hotswap.load(flux(tmp_path), hotswap.plan([file]), file)
    compare(weights(loaded), weights(reference))


def test_one_recipe_in_two_formats_plans_to_the_same_modules(tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn1.to_q"
    save_file(pair(f"diffusion_model.{name}", 16, 16, PEFT), tmp_path / "comfy.safetensors")
    save_file(pair(f"transformer.{name}", 16, 16, PEFT), tmp_path / "own.safetensors")
    plan = hotswap.plan([tmp_path / "comfy.safetensors", tmp_path / "own.safetensors"])
    assert (list(plan.modules), plan.conflicts) == ([name], ())


def test_metadata_beside_older_names_gives_the_alpha(tmp_path: Path) -> None:
    fields = {"unet.r": 4, "unet.lora_alpha": 12, "unet.target_modules": ["to_q"]}
    metadata = {"lora_adapter_metadata": json.dumps(fields)}
    save_file(pair(f"unet.{UNET}.to_q", 8, 8, OLD), tmp_path / "a.safetensors", metadata)
    (module,) = AdapterSpec.read(tmp_path / "a.safetensors").modules.values()
    assert module.scaling == 3


PEFT_NAMES = {
    "PEFT's": "base_model.model.model.layers.0.self_attn.q_proj",
    "PEFT's without a prefix": "model.layers.0.self_attn.q_proj",
    "a wrapped model's": "module.base_model.model.model.layers.0.self_attn.q_proj",
}


@pytest.mark.parametrize("name", PEFT_NAMES)
def test_a_file_of_peft_without_its_config_is_refused_in_every_way_in(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "expert.safetensors"
    save_file(pair(PEFT_NAMES[name], 8, 8, PEFT), file)
    adapter = write_pipeline_adapter(
        tmp_path / "first", stable_diffusion(tmp_path), seed=1, parts=("unet",), r=2
    )
    pipeline = stable_diffusion(tmp_path)
    pipeline.load_lora_weights(str(adapter))
    hotswap.prepare(pipeline, target_rank=4)
    before = weights(pipeline)
    for way in (
        lambda: AdapterSpec.read(file),
        lambda: hotswap.plan([file]),
        lambda: hotswap.swap(pipeline.unet, file),
    ):
        with pytest.raises(UnreadableAdapterError, match="alpha is unknown") as caught:
            way()
        assert [finding.code for finding in caught.value.findings] == ["HSW002"]
    with pytest.raises(AdapterError):
        hotswap.swap(pipeline, file)
    compare(weights(pipeline), before)


def test_names_that_two_families_read_in_two_ways_say_which_they_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(family: Family, *args: Any) -> Converted:
        tensors = pair(f"{family.pipeline}.to_q", 16, 16, PEFT)
        return Converted({"transformer": infos(tensors)}, {})

    file = tmp_path / "either.safetensors"
    save_file(pair("diffusion_model.double_blocks.0.img_attn.proj", 16, 16, PEFT), file)
    monkeypatch.setattr(trainers, "converted", read)
    with pytest.raises(UnreadableAdapterError, match="FluxPipeline or Flux2Pipeline") as caught:
        AdapterSpec.read(file)
    assert "--base" in caught.value.findings[0].remedy


def read(tensors: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> AdapterSpec:
    save_file(tensors, folder / "own.safetensors", metadata)
    return AdapterSpec.read(folder / "own.safetensors")


def test_a_file_for_the_second_text_encoder_is_planned_for_that_one(tmp_path: Path) -> None:
    name = "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj"
    read(pair(name, 16, 16, PEFT), tmp_path)
    assert list(hotswap.plan([tmp_path / "own.safetensors"]).modules) == [name]


def test_metadata_does_not_say_which_modules_of_a_denoiser_are_loaded(tmp_path: Path) -> None:
    """As in diffusers, which puts LoRA layers wherever the file has weights."""
    fields = {"unet.r": 4, "unet.lora_alpha": 12, "unet.target_modules": ["to_q"]}
    tensors = pair(f"unet.{UNET}.to_q", 8, 8, PEFT) | pair(f"unet.{UNET}.to_v", 8, 8, PEFT)
    spec = read(tensors, tmp_path, {"lora_adapter_metadata": json.dumps(fields)})
    assert (spec.left_out, {m.scaling for m in spec.modules.values()}) == ((), {3})
    reference, pipeline = stable_diffusion(tmp_path), stable_diffusion(tmp_path)
    file = tmp_path / "own.safetensors"
    reference.load_lora_weights(str(file))
    compare(weights(hotswap.load(pipeline, hotswap.plan([file]), file)), weights(reference))


@pytest.mark.parametrize("inside", ["transformer.module.", "transformer._orig_mod.", "_orig_mod."])
def test_names_of_wrapped_and_compiled_components_are_refused(inside: str, tmp_path: Path) -> None:
    spec = read(pair(f"{inside}{FLUX}.to_q", 32, 32, PEFT), tmp_path)
    assert [finding.code for finding in spec.findings] == ["HSW108"]


@pytest.mark.parametrize(("wide", "pipeline"), [(4, "FluxPipeline"), (6, "Flux2Pipeline")])
def test_fused_names_of_two_families_are_told_apart_by_their_widths(
    wide: int, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(family: Family, *args: Any) -> Converted:
        asked.append(family.pipeline)
        return converted(family, *args)

    monkeypatch.setattr(trainers, "converted", note)
    read(pair("lora_unet_double_blocks_0_img_mlp_0", 32 * wide, 32, KOHYA), tmp_path)
    assert set(asked) == {pipeline}


def test_magnitudes_that_diffusers_leaves_out_are_a_warning(tmp_path: Path) -> None:
    tensors = with_alpha(kohya_unet())
    file = tmp_path / "own.safetensors"
    for more, expected in (
        ({}, []),
        (
            {f"lora_te_{TEXT}.q_proj".replace(".", "_") + ".dora_scale": torch.ones(16, 1)},
            ["HSW118"],
        ),
    ):
        save_file({**tensors, **more}, file)
        found = Inspector()(str(file)).findings
        assert [(f.code, f.severity) for f in found] == [(code, "warning") for code in expected]


UNREAD = {
    "lycoris_transformer_blocks_0_attn_to_q": KOHYA,
    "lora_unet_joint_blocks_0_x_block_attn_proj": KOHYA,
    "lora_unknown_thing": KOHYA,
    "double_blocks.0.img_attn.proj": PEFT,
    "blocks.0.self_attn.q": PEFT,
}


@pytest.mark.parametrize("name", UNREAD)
def test_names_that_diffusers_does_not_read_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableAdapterError) as caught:
        read(pair(name, 16, 16, UNREAD[name]), tmp_path)
    assert [finding.code for finding in caught.value.findings] == ["HSW005"]


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    tensors = kohya_unet()
    del tensors[next(iter(tensors))]
    with pytest.raises(UnreadableAdapterError, match="one of the two LoRA weights") as caught:
        read(tensors, tmp_path)
    assert [finding.code for finding in caught.value.findings] == ["HSW103"]


def told(**parts: dict[str, Any]) -> dict[str, str]:
    fields = {f"{part}.{key}": value for part, own in parts.items() for key, value in own.items()}
    return {"lora_adapter_metadata": json.dumps(fields)}


_OF_UNET = {"r": 4, "lora_alpha": 12, "target_modules": ["to_q"]}
_TWO = pair(f"unet.{UNET}.to_q", 8, 8, PEFT) | pair(f"text_encoder.{TEXT}.q_proj", 16, 16, PEFT)
METADATA: dict[str, tuple[Tensors, dict[str, str]]] = {
    "of one component": (_TWO, told(unet=_OF_UNET)),
    "of none": (_TWO, told()),
    "without targets": (_TWO, told(unet=_OF_UNET, text_encoder={"r": 4})),
    "beside alphas": (with_alpha(kohya_unet()), told(unet=_OF_UNET)),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_diffusers_refuses_is_refused(name: str, tmp_path: Path) -> None:
    tensors, metadata = METADATA[name]
    file = tmp_path / "own.safetensors"
    save_file(tensors, file)
    pipeline = hotswap.load(stable_diffusion(tmp_path), hotswap.plan([file]), file)
    save_file(tensors, file, metadata)
    with pytest.raises((ValueError, KeyError)):
        stable_diffusion(tmp_path).load_lora_weights(str(file))
    assert [found.code for found in hotswap.check_adapters(file)] == ["HSW003"]
    for way in (lambda: hotswap.plan([file]), lambda: hotswap.swap(pipeline, file)):
        with pytest.raises(UnreadableAdapterError, match=r"diffusers (refuses|does not take both)"):
            way()


def test_alphas_that_diffusers_leaves_out_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(with_alpha(pair(f"transformer.{FLUX}.to_q", 32, 32, KOHYA)), file)
    fresh = flux(tmp_path)
    fresh.load_lora_weights(str(file))
    layer = fresh.transformer.get_submodule(f"{FLUX}.to_q")
    assert [*layer.scaling.values()] == [1]  # and its alpha is half its rank
    for way in (lambda: AdapterSpec.read(file), lambda: hotswap.swap(fresh, file)):
        with pytest.raises(UnreadableAdapterError, match="leaves alphas out") as caught:
            way()
        assert "rename its weights to lora_A.weight" in caught.value.findings[0].remedy
    save_file(with_alpha(pair(f"transformer.{FLUX}.to_q", 32, 32, PEFT)), file)
    assert {module.scaling for module in AdapterSpec.read(file).modules.values()} == {0.5}


def test_names_of_peft_inside_of_a_component_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableAdapterError, match="go on with base_model") as caught:
        read(pair(f"transformer.base_model.model.{FLUX}.to_q", 32, 32, PEFT), tmp_path)
    assert [found.code for found in caught.value.findings] == ["HSW108"]
