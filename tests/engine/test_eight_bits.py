"""Weights in floats of 8 bits are floating numbers: checked, planned and swapped as PEFT loads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hotswap
from hotswap.adapters.modules import widest
from tests.support.models import fresh, micro, run, write_fleet

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_adapter_of_8_bits_is_swapped(dtype: torch.dtype, tmp_path: Path) -> None:
    base = micro()
    fleet = write_fleet(
        tmp_path, base, {"first": {"r": 2, "lora_alpha": 4}, "small": {"r": 4, "lora_alpha": 4}}
    )
    file = fleet["small"] / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file)
    assert hotswap.check_adapters(fleet["small"], weights=True) == []
    assert hotswap.plan([fleet["small"]]).dtype == "BF16"
    model = fresh(base, fleet["first"])
    hotswap.prepare(model, target_rank=4)
    hotswap.swap(model, fleet["small"])
    torch.testing.assert_close(run(model), run(fresh(base, fleet["small"])))
    broken = {name: value.to(dtype) for name, value in load_file(file).items()}
    first = next(iter(broken))
    broken[first] = torch.full(broken[first].shape, float("nan")).to(dtype)
    save_file(broken, file)
    assert {f.code for f in hotswap.check_adapters(fleet["small"], weights=True)} == {"HSW110"}


def test_8_bits_fit_in_every_other_dtype() -> None:
    assert widest(["F8_E4M3", "F16"]) == "F16"
    assert widest(["F8_E4M3", "F8_E5M2"]) == "BF16"
    assert widest(["F8_E5M2", "F16", "BF16"]) == "F32"
