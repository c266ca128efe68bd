"""A module whose docstring shows a mistake.

>>> model = torch.compile(model)
>>> prepare_model_for_compiled_hotswap(model, target_rank=64)
"""
import torch
from peft import PeftModel


def describe():
    """pipe.load_lora_weights("b", hotswap=True) needs a name."""
    return "pipe.enable_lora_hotswap() after pipe.load_lora_weights() raises"
