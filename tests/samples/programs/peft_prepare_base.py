"""The base model is prepared, before it has any adapter."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm", device_map="auto")
prepare_model_for_compiled_hotswap(base, target_rank=64)  # want HSW202
model = PeftModel.from_pretrained(base, "adapters/support")
model = torch.compile(model)
