"""Unwrapped before it is prepared, and nothing ran."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = torch.compile(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a"))
if hasattr(model, "_orig_mod"):
    model = model._orig_mod
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)
