"""Every style of compiling is found."""

from __future__ import annotations

import torch
from torch import nn

from hotswap.compiler.compiled import compiled_parts
from tests.support.watched import (
    Scaled,
)


def test_every_style_of_compiling_is_found_and_a_plain_model_is_not() -> None:
    assert compiled_parts(nn.Sequential(Scaled())) == []
    wrapper = torch.compile(Scaled())
    assert compiled_parts(wrapper) == ["the model is wrapped by torch.compile"]
    model = Scaled()
    model.compile()
    assert compiled_parts(model) == ["the model was compiled in place by .compile()"]
    model = Scaled()
    model.linear = torch.compile(model.linear)
    assert compiled_parts(model) == ["linear is wrapped by torch.compile"]
    model = Scaled()
    model.linear.forward = torch.compile(model.linear.forward)
    assert compiled_parts(model) == ["linear has a compiled forward"]
