"""This project's own swap on a model that was never prepared."""
import torch
from hotswap import swap
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
compiled = torch.compile(model)
compiled(torch.ones(1, 8, dtype=torch.long))
swap(compiled, "adapters/b")  # want HSW205
