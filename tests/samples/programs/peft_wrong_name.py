"""Loaded as "support", swapped as "default"."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm")
model = PeftModel.from_pretrained(model, "adapters/support", adapter_name="support")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)
model(torch.ones(1, 8, dtype=torch.long))
hotswap_adapter(model, "adapters/sales", adapter_name="default")  # want HSW208
