"""Files of diffusers, with and without metadata, and old ones."""

from __future__ import annotations

from pathlib import Path

import hotswap
from hotswap.adapters.fit import fits
from hotswap.adapters.spec import AdapterSpec
from tests.support.adapter_files import lora_tensors
from tests.support.adapter_samples import diffusers_file


def test_files_of_diffusers_are_read_with_and_without_metadata(tmp_path: Path) -> None:
    tensors = {
        f"transformer.{name.removeprefix('base_model.model.')}": info
        for name, info in lora_tensors({"to_q": (32, 16), "to_k": (32, 16)}, rank=4).items()
    }
    targets = {"transformer.target_modules": ["to_q", "to_k"]}
    told = {"transformer.r": 4, "transformer.lora_alpha": 2, **targets}
    file = tmp_path / "a" / "pytorch_lora_weights.safetensors"
    spec = AdapterSpec.read(diffusers_file(file, tensors, told).parent)
    assert (spec.modules["to_q"].rank, spec.modules["to_q"].alpha) == (4, 2)
    assert AdapterSpec.read(diffusers_file(file, tensors, None)).modules["to_q"].alpha == 4
    both = {**tensors, "text_encoder.k.lora_A.weight": ("F32", (2, 4))}
    both["text_encoder.k.lora_B.weight"] = ("F32", (4, 2))
    spec = AdapterSpec.read(diffusers_file(file, both, None))
    assert {name: module.rank for name, module in spec.modules.items()} == {
        "transformer.to_q": 4,
        "transformer.to_k": 4,
        "text_encoder.k": 2,
    }
    one = AdapterSpec.read(diffusers_file(tmp_path / "b" / file.name, tensors, told))
    assert set(hotswap.plan([one]).modules) == {"to_q", "to_k"}
    together = hotswap.plan([one, spec])
    assert set(together.modules) == set(spec.modules)
    assert together.conflicts == fits(together, one) == fits(together, spec) == ()
    wrong = hotswap.check_adapters(diffusers_file(file, tensors, {**told, "transformer.r": 5}))
    assert {finding.code for finding in wrong} == {"HSW104"}


def test_old_files_of_diffusers_are_refused_by_name(tmp_path: Path) -> None:
    file = diffusers_file(tmp_path / "old.safetensors", {"lora_unet_x.down": ("F32", (2,))}, None)
    (found,) = hotswap.check_adapters(file)
    assert (found.code, "names other than PEFT's" in found.message) == ("HSW005", True)
