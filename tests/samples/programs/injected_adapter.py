"""An adapter that PEFT injects into a plain module counts as loaded."""
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base/llm")
model = inject_adapter_in_model(LoraConfig(r=8), model, "default")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)
