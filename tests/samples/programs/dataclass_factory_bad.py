"""The same factory compiles in the constructor call and prepares what it gets back."""
from dataclasses import dataclass
from typing import Any
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap as prep
from transformers import AutoModelForCausalLM
@dataclass
class Engine:
    model: Any
    current: str
    def activate(self, path: str) -> None:
        hotswap_adapter(self.model, path, adapter_name="default")
        self.current = path
def build(base, adapter, rank):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    engine = Engine(model=torch.compile(model), current=adapter)
    prep(engine.model, target_rank=rank)  # want HSW201
    return engine
