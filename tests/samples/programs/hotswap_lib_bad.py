"""hotswap's own functions: compiled before prepared, in a method chain."""
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
        prepare(self.model, target_rank=rank)  # want HSW201
        return self
runner = Runner().load("g", "a").compile().ready(16)
swap(runner.model, "b")
