"""Merges for speed, and swaps without unmerging."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
class Chat:
    def __init__(self, base, adapter):
        self.net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        prepare_model_for_compiled_hotswap(self.net, target_rank=16)
        self.net.merge_adapter()
        self.net = torch.compile(self.net)
    def switch(self, path):
        hotswap_adapter(self.net, path, adapter_name="default")  # want HSW211
    def __call__(self, x):
        return self.net(x)
