"""A test that provokes the mistake on purpose."""
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def test_prepare_refuses_a_compiled_model():
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base/tiny"), LoraConfig(r=4))
    model = torch.compile(model)
    with pytest.raises(ValueError, match="before"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
