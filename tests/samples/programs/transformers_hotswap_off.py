"""hotswap=False turns off what was enabled: the name is taken."""
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm").to("cuda")
model.enable_peft_hotswap(target_rank=16)
model.load_adapter("adapters/a", adapter_name="default")
model = torch.compile(model)
model(torch.ones(1, 8, dtype=torch.long))
model.load_adapter("adapters/b", adapter_name="default", hotswap=False)  # want HSW216
