"""A slider fills the scaling tensors in place."""
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
prepare_model_for_compiled_hotswap(model, target_rank=16)
compiled = torch.compile(model)
def strength(value):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"].fill_(value)
def swap(path):
    hotswap_adapter(compiled, path, adapter_name="default")
