"""Compile only when CUDA is there; prepared after it."""
import torch
from peft import AutoPeftModelForCausalLM
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
model = AutoPeftModelForCausalLM.from_pretrained("user/adapter")
if torch.cuda.is_available():
    model = torch.compile(model)
prepare_model_for_compiled_hotswap(model, target_rank=64)  # want HSW201
hotswap_adapter(model, "b", adapter_name="default")
