"""Module dict as cache; second function swaps what is there."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
_cache = {}
def get_model():
    if "model" not in _cache:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
        prepare_model_for_compiled_hotswap(model, target_rank=64)
        _cache["model"] = torch.compile(model)
    return _cache["model"]
def swap(path):
    hotswap_adapter(get_model(), path, adapter_name="default")
def ask(x):
    with torch.no_grad():
        return get_model()(x)
