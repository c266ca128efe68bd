"""A strength slider that writes a float where preparation put a tensor."""
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm")
model = PeftModel.from_pretrained(base, "adapters/support")
prepare_model_for_compiled_hotswap(model, target_rank=64)
model = torch.compile(model)


def set_strength(strength: float):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", strength)  # want HSW210


def set_strength_in_place(strength: float):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"].fill_(strength)
