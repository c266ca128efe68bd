"""Warm-up with no_grad, requests with inference_mode."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
class Service:
    def __init__(self):
        base = AutoModelForCausalLM.from_pretrained("g")
        self.model = PeftModel.from_pretrained(base, "a")
        prepare_model_for_compiled_hotswap(self.model, target_rank=16)
        self.model = torch.compile(self.model)
        with torch.no_grad():
            self.model(torch.ones(1, 1, dtype=torch.long))
    def swap(self, p):
        hotswap_adapter(self.model, p, adapter_name="default")
    @torch.inference_mode()
    def __call__(self, ids):
        return self.model(ids)  # want HSW214
