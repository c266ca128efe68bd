"""Nothing is prepared: every adapter of another rank or alpha costs a compile."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

TASKS = {"support": "adapters/support", "sales": "adapters/sales"}


class Router:
    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained("base/llm")
        base = AutoModelForCausalLM.from_pretrained("base/llm").eval()
        self.model = torch.compile(PeftModel.from_pretrained(base, TASKS["support"]))

    def answer(self, task, text):
        hotswap_adapter(self.model, TASKS[task], adapter_name="default")  # want HSW205
        with torch.inference_mode():
            return self.model(**self.tokenizer(text, return_tensors="pt"))
