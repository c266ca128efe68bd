"""enable_peft_hotswap belongs to transformers models, not to PeftModel."""
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm")
model = PeftModel.from_pretrained(base, "adapters/a")
model.enable_peft_hotswap(target_rank=64)  # want HSW213
