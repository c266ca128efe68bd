"""The adapter that is in the model is wider than the target rank."""
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm")
model = get_peft_model(base, LoraConfig(r=64, target_modules="all-linear"))
prepare_model_for_compiled_hotswap(model, target_rank=32)  # want HSW204
