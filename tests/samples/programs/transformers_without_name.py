"""A swap without a name."""
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm").to("cuda")
model.enable_peft_hotswap(target_rank=64)
model.load_adapter("adapters/a")
model = torch.compile(model)
model(torch.ones(1, 8, dtype=torch.long))
model.load_adapter("adapters/b", hotswap=True)  # want HSW207
