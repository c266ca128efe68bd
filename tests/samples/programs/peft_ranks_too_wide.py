"""The adapters are made here with ranks 8 and 64, and the slot is for 32."""
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def train(rank, folder):
    base = AutoModelForCausalLM.from_pretrained("base/llm")
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"]))
    model.save_pretrained(folder)


train(8, "out/small")
train(64, "out/large")
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "out/small")
prepare_model_for_compiled_hotswap(model, target_rank=32)  # want HSW204
model = torch.compile(model)
model(torch.ones(1, 8, dtype=torch.long))
hotswap_adapter(model, "out/large", adapter_name="default")
model(torch.ones(1, 8, dtype=torch.long))
