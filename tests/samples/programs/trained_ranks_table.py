"""Config module constants, typed dict, and a rank that is too small."""
import torch
from pathlib import Path
from peft import PeftModel, LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
TARGET_RANK: int = 8
ADAPTERS: list[tuple[str, int]] = [("law", 8), ("code", 32)]
def train(name, rank):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("g"), LoraConfig(r=rank, lora_alpha=16))
    model.save_pretrained(f"out/{name}")
def main():
    for name, rank in ADAPTERS:
        train(name, rank)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "out/law")
    prepare_model_for_compiled_hotswap(model, target_rank=TARGET_RANK)  # want HSW204
    model = torch.compile(model)
    hotswap_adapter(model, "out/code", adapter_name="default")
if __name__ == "__main__":
    main()
