"""The names of tensors and modules."""

from __future__ import annotations

from hotswap.adapters.names import canonical, families, family, owner, sort_names


def test_layer_numbers_make_a_family() -> None:
    assert family("h.0.attn.12.q1") == "h.*.attn.*.q1"
    assert family("0") == "*"


def test_layers_of_which_the_same_is_said_are_one_family() -> None:
    said = [("layers.1.q", 4), ("layers.0.q", 4), ("layers.2.q", 8), ("head", 4)]
    assert families(said) == [("head", 4), ("layers.*.q (2 modules)", 4), ("layers.*.q", 8)]
    assert families(said, exact=True)[2] == ("layers.2.q", 8)


def test_names_are_those_that_peft_saves() -> None:
    assert canonical("base_model.model.x._orig_mod.q") == "x.q"
    assert owner("experts.base_layer.base_layer") == "experts"
    assert owner("base_layers.q") == "base_layers.q"


def test_a_tensor_that_is_there_with_and_without_a_prefix_is_twice() -> None:
    names = ("base_model.model.q.lora_A.weight", "q.lora_A.weight", "q.lora_B.weight", "odd")
    found = sort_names(names)
    assert found.modules == {("lora_A.weight", "lora_B.weight"): (["q"], [(1,), (2,)])}
    assert (found.others, found.twice) == ({"odd": "odd"}, ["q.lora_A.weight"])
