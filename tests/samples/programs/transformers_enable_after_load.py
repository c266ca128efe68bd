"""transformers' own integration, enabled after the first adapter."""
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm").to("cuda")
model.load_adapter("adapters/a", adapter_name="default")
model.enable_peft_hotswap(target_rank=64)  # want HSW203
model = torch.compile(model)
