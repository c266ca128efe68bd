"""Enabled, loaded, compiled; the same name swaps by itself."""
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm").to("cuda")
model.enable_peft_hotswap(target_rank=64)
model.load_adapter("adapters/a", adapter_name="default")
model = torch.compile(model)
ids = torch.ones(1, 8, dtype=torch.long)
model(ids)
model.load_adapter("adapters/b", adapter_name="default")
model(ids)
