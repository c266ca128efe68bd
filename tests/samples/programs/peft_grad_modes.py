"""Warmed up without gradients, then called with them."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)
ids = torch.ones(1, 8, dtype=torch.long)
with torch.inference_mode():
    model(ids)
hotswap_adapter(model, "adapters/b", adapter_name="default")
logits = model(ids).logits  # want HSW214
