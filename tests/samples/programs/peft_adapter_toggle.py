"""Prepared for hot-swapping, then used with set_adapter."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a", adapter_name="a")
model.load_adapter("adapters/b", adapter_name="b")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)
ids = torch.ones(1, 8, dtype=torch.long)
model(ids)
model.set_adapter("b")  # want HSW212
model(ids)
