"""Compile only when CUDA is there; prepared always."""
import torch
from peft import AutoPeftModelForCausalLM
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
model = AutoPeftModelForCausalLM.from_pretrained("user/adapter")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model) if torch.cuda.is_available() else model
hotswap_adapter(model, "b", adapter_name="default")
