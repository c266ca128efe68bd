"""The table of formats: each knows its own adapters and leaves the others alone."""

from __future__ import annotations

import json

import pytest

from hotswap.adapters.formats import FORMATS, components_of, diffusers, peft, refused, trainers
from hotswap.adapters.formats.component import Component
from hotswap.adapters.header import FileLayout, TensorInfo
from hotswap.adapters.texts import Texts
from hotswap.errors import UnreadableAdapterError

PEFT = {"peft_type": "LORA", "r": 2, "target_modules": ["q"]}
Q = TensorInfo("F32", (2, 8), 0, 64)


def given(name: str, config: dict[str, object] | None) -> tuple[Texts, FileLayout]:
    text = None if config is None else json.dumps(config).encode()
    return Texts("a", "a/weights", text, b"", 64), FileLayout({name: Q}, 8, 64)


def test_the_table_has_every_format() -> None:
    modules = (peft, diffusers, trainers, refused)  # who refuses comes last
    assert tuple(module.components for module in modules) == FORMATS


def test_a_config_makes_an_adapter_of_peft() -> None:
    texts, layout = given("base_model.model.q.lora_A.weight", PEFT)
    assert components_of(texts, layout) == {"": Component(PEFT, layout.tensors)}
    assert diffusers.components(texts, layout) is None


def test_names_of_peft_without_a_config_are_of_diffusers() -> None:
    texts, layout = given("unet.q.lora_A.weight", None)
    assert peft.components(texts, layout) is None
    (name, found), *others = components_of(texts, layout).items()
    assert (name, others) == ("unet", [])
    assert found.tensors == {"q.lora_A.weight": Q}
    assert (found.config["r"], found.config["lora_alpha"]) == (2, 2)


def test_what_no_format_knows_is_refused_by_its_names() -> None:
    with pytest.raises(UnreadableAdapterError, match="names other than PEFT's") as caught:
        components_of(*given("lora_unet_q.alpha", None))
    assert [finding.where for finding in caught.value.findings] == ["a/weights"]
