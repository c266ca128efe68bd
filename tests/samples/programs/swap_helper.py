"""A benchmark whose helpers load, compile and swap, but nobody prepares."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM

def build():
    model = AutoModelForCausalLM.from_pretrained("m")
    model = PeftModel.from_pretrained(model, "a")
    model.eval()
    return torch.compile(model)

def bench(model, path, inputs):
    hotswap_adapter(model, path, adapter_name="default", torch_device="cuda")  # want HSW205
    return model(**inputs)

def main():
    model = build()
    for p in ["a", "b"]:
        bench(model, p, {})

if __name__ == "__main__":
    main()
