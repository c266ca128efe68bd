"""This project's own engine, in the wrong order."""
import hotswap
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
compiled = torch.compile(model)
hotswap.prepare(compiled, target_rank=64)  # want HSW201
hotswap.swap(compiled, "adapters/b")
