"""hotswap's own functions: prepared before compiled, in a method chain."""
import torch
from hotswap import prepare, swap
from peft import PeftModel
from transformers import AutoModelForCausalLM
class Runner:
    def load(self, base, adapter):
        self.model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        return self
    def compile(self):
        self.model = torch.compile(self.model)
        return self
    def ready(self, rank):
        prepare(self.model, target_rank=rank)
        return self
runner = Runner().load("g", "a").ready(16).compile()
swap(runner.model, "b")
