"""PEFT: compiled once, and the base model's answer wanted in between."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
prepare_model_for_compiled_hotswap(model, target_rank=8)
model.compile()
@torch.no_grad()
def compare(ids, path):
    hotswap_adapter(model, path, adapter_name="default")
    tuned = model(ids)
    with model.disable_adapter():  # want HSW212
        plain = model(ids)
    return tuned, plain
