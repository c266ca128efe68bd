"""Another adapter that is merged into the base weights, with adapters that are swapped over it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import hotswap
from hotswap.engine.peft.functions import hotswap_adapter
from hotswap.errors import MergedAdapterError, UnsupportedLayerError
from tests.support.models import bits, fresh, micro, run, same_bits, write_adapter, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")

STYLES: dict[str, dict[str, Any]] = {
    "formal": {"r": 2, "lora_alpha": 4},
    "poetic": {"r": 6, "lora_alpha": 3},
}
Swap = Callable[[Any, Path], Any]


@pytest.fixture
def base() -> Any:
    return micro()


@pytest.fixture
def styles(base: Any, tmp_path: Path) -> dict[str, Path]:
    return write_fleet(tmp_path, base, STYLES)


def lightning(base: Any, folder: Path, targets: list[str]) -> Path:
    """An adapter that is to be merged, over some of the layers that the styles have."""
    return write_adapter(folder / "lightning", base, seed=9, r=3, target_modules=targets)


def both(base: Any, fast: Path, style: Path) -> Any:
    """A model as PEFT makes it: the style is active, the other adapter is merged."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), style, adapter_name="style")
    model.load_adapter(fast, "lightning")
    model.merge_adapter(["lightning"])
    return model.eval()


SWAPS: dict[str, Swap] = {
    "swap": lambda model, folder: hotswap.swap(model, folder, adapter_name="style"),
    "PEFT's function": lambda model, folder: hotswap_adapter(model, folder, "style"),
}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("targets", [["embed", "conv"], ["embed", "first", "second", "conv"]])
def test_swaps_over_a_merged_adapter_are_what_peft_computes(
    swap: str, targets: list[str], base: Any, styles: Any, tmp_path: Path
) -> None:
    fast = lightning(base, tmp_path, targets)
    model = both(base, fast, styles["formal"])
    before = run(model)
    hotswap.prepare(model, target_rank=8)
    torch.testing.assert_close(run(model), before)
    for name in ("poetic", "formal", "poetic"):
        with pytest.warns(
            UserWarning, match=r"'lightning' is merged in embed.*passes over 'style'"
        ):
            SWAPS[swap](model, styles[name])
        torch.testing.assert_close(run(model), run(both(base, fast, styles[name])))
    model.unmerge_adapter()
    torch.testing.assert_close(run(model), run(fresh(base, styles["poetic"])))
    model.merge_adapter(["style"])
    with pytest.raises(MergedAdapterError, match=r"'style'; call unmerge_adapter\(\)"):
        SWAPS[swap](model, styles["formal"])
    with pytest.raises(MergedAdapterError, match="'style'"):  # unmerging would subtract another
        hotswap.set_scale(model, 0.5, adapter_name="style")


def test_a_merged_model_is_swapped_without_a_recompile_and_through_a_bank(
    base: Any, styles: Any, tmp_path: Path
) -> None:
    fast = lightning(base, tmp_path, ["conv"])
    model = both(base, fast, styles["formal"])
    hotswap.prepare(model, target_rank=8)
    bank = hotswap.AdapterBank(model, adapter_name="style")
    for name, folder in styles.items():
        bank.add(name, folder)
    torch._dynamo.reset()
    faster = torch.compile(model, backend="eager")
    run(faster)
    with hotswap.forbid_recompiles(faster):
        for name in ("poetic", "formal"):
            with bank.using(name):
                torch.testing.assert_close(run(faster), run(both(base, fast, styles[name])))


def test_what_was_merged_for_good_is_the_base_model_of_what_comes_then(
    base: Any, styles: Any, tmp_path: Path
) -> None:
    fast = lightning(base, tmp_path, ["first", "second", "conv"])
    merged = fresh(base, fast).merge_and_unload()
    model = fresh(merged, styles["formal"])
    hotswap.prepare(model, target_rank=8)
    for name in ("poetic", "formal"):
        hotswap.swap(model, styles[name])
        torch.testing.assert_close(run(model), run(fresh(merged, styles[name])))
    hotswap.swap(model, None)
    torch.testing.assert_close(run(model), run(merged))


def test_norms_of_dora_are_those_of_the_base_weight_and_never_of_what_is_merged(
    base: Any, tmp_path: Path
) -> None:
    fleet = write_fleet(
        tmp_path,
        base,
        {
            "dora": {"r": 4, "use_dora": True},
            "other": {"r": 2, "use_dora": True},
            "plain": {"r": 4},
            "few": {"r": 4, "target_modules": ["second"]},
        },
    )
    fast = lightning(base, tmp_path, ["first"])
    model = both(base, fast, fleet["dora"])
    hotswap.prepare(model, target_rank=4)
    hotswap.swap(model, fleet["other"])  # brings its norms along
    before = bits(model)
    for adapter in (fleet["plain"], fleet["few"], None):
        with pytest.raises(
            UnsupportedLayerError, match=r"first: .*merged; call unmerge_adapter\(\)"
        ):
            hotswap.swap(model, adapter)
    assert same_bits(before, bits(model))
    model.unmerge_adapter()
    hotswap.swap(model, fleet["plain"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["plain"])))
    hotswap.swap(model, fleet["few"])
    model.merge_adapter(["lightning"])
    hotswap.swap(model, fleet["dora"])
    hotswap.swap(model, fleet["few"])  # of which the norm of the base weight is known already
    with pytest.raises(UnsupportedLayerError, match=r"first: .*merged"):
        hotswap.set_scale(model, 0.5)
    model.unmerge_adapter()
    torch.testing.assert_close(run(model), run(fresh(base, fleet["few"])))
    # a plan that would add the magnitude now
    model = both(base, fast, fleet["plain"])
    before = bits(model)
    with pytest.raises(UnsupportedLayerError, match=r"first: .*merged"):
        hotswap.prepare(model, plan=hotswap.plan([fleet["plain"], fleet["dora"]]))
    assert same_bits(before, bits(model))


def test_only_the_adapter_that_is_merged_is_not_prepared(
    base: Any, styles: Any, tmp_path: Path
) -> None:
    fast = lightning(base, tmp_path, ["first"])
    model = both(base, fast, styles["formal"])
    with pytest.raises(UnsupportedLayerError, match="merged"):
        hotswap.prepare(model, target_rank=8, adapter_name="lightning")
    hotswap.prepare(model, target_rank=8)
    assert hotswap.active(model) == "style"
    model.unmerge_adapter()
    hotswap.prepare(model, target_rank=8)
    hotswap.swap(model, fast, adapter_name="lightning")
    model.set_adapter("lightning")
    torch.testing.assert_close(run(model), run(fresh(base, fast)))


def test_a_fused_lora_of_a_pipeline_stays_below_the_styles_that_are_swapped(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.support.pipelines import outputs, stable_diffusion, write_pipeline_adapter

    def make() -> Any:
        return stable_diffusion(tmp_path / "base")

    def write(name: str, rank: int, seed: int) -> str:
        return str(
            write_pipeline_adapter(tmp_path / name, make(), seed=seed, r=rank, parts=("unet",))
        )

    fast = write("fast", 2, 1)
    one, two = (write(f"style{seed}", rank, seed) for seed, rank in ((2, 2), (3, 6)))

    def fused(style: str, *, unload: bool) -> Any:
        pipe = make()
        pipe.load_lora_weights(fast, adapter_name="lightning")
        pipe.fuse_lora(components=["unet"], adapter_names=["lightning"], lora_scale=1.0)
        if unload:
            pipe.unload_lora_weights()
        pipe.load_lora_weights(style, adapter_name="style")
        return pipe

    for unload in (True, False):
        pipe = fused(one, unload=unload)
        hotswap.prepare(pipe, target_rank=6)
        for style in (two, one):
            hotswap.swap(pipe, style, adapter_name="style")
            for found, wanted in zip(
                outputs(pipe), outputs(fused(style, unload=unload)), strict=True
            ):
                torch.testing.assert_close(found, wanted)
        if unload:
            assert not torch.equal(outputs(pipe)[-1], outputs(make())[-1])
        else:
            hotswap.swap(pipe, two, adapter_name="style")
            pipe.unfuse_lora(components=["unet"])
            pipe.set_adapters("style")
            alone = make()
            alone.load_lora_weights(two)
            torch.testing.assert_close(outputs(pipe)[-1], outputs(alone)[-1], rtol=1e-4, atol=1e-5)
