"""A server that compiles in its constructor, prepares afterwards, and swaps another name."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM, AutoTokenizer

class LLMServer:
    def __init__(self, base, adapter, max_rank=64, use_compile=True):
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        m = AutoModelForCausalLM.from_pretrained(base, torch_dtype="auto")
        self.model = PeftModel.from_pretrained(m, adapter, adapter_name="active")
        if use_compile:
            self.model = torch.compile(self.model)
        prepare_model_for_compiled_hotswap(self.model, target_rank=max_rank)  # want HSW201

    def swap(self, path):
        hotswap_adapter(self.model, path, adapter_name="default")  # want HSW208

    @torch.inference_mode()
    def generate(self, text):
        return self.model.generate(**self.tokenizer(text, return_tensors="pt"))
