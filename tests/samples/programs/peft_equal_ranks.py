"""Both adapters come from one config: nothing to prepare."""
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM

config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
for name in ("a", "b"):
    base = AutoModelForCausalLM.from_pretrained("base/llm")
    get_peft_model(base, config).save_pretrained(f"out/{name}")

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "out/a")
model = torch.compile(model)
model(torch.ones(1, 8, dtype=torch.long))
hotswap_adapter(model, "out/b", adapter_name="default")
model(torch.ones(1, 8, dtype=torch.long))
