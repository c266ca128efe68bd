"""A dataclass holds the model; a factory builds it in the right order."""
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Any
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap as prep
from transformers import AutoModelForCausalLM
@dataclass
class Engine:
    model: Any
    current: str
    history: list[str] = field(default_factory=list)
    def activate(self, path: str) -> None:
        hotswap_adapter(self.model, path, adapter_name="default")
        self.current = path
        self.history.append(path)
    @torch.inference_mode()
    def answer(self, ids):
        return self.model.generate(input_ids=ids)
def build(base: str, adapter: str, rank: int) -> Engine:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    prep(model, target_rank=rank)
    return Engine(model=torch.compile(model, mode="reduce-overhead"), current=adapter)
if __name__ == "__main__":
    engine = build("gpt2", "a", 32)
    engine.answer(torch.zeros(1, 4, dtype=torch.long))
    engine.activate("b")
