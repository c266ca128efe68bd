"""Adapters trained here with two ranks; the slot is too small for the second."""
import torch
from peft import PeftModel, LoraConfig, TaskType
from peft.utils.hotswap import prepare_model_for_compiled_hotswap, hotswap_adapter
from transformers import AutoModelForCausalLM, TrainingArguments, Trainer

def train(base, ds, rank):
    from peft import get_peft_model
    model = get_peft_model(base, LoraConfig(r=rank, task_type=TaskType.CAUSAL_LM))
    Trainer(model=model, args=TrainingArguments("o", torch_compile=True), train_dataset=ds).train()
    model.save_pretrained(f"out-{rank}")

for rank in (8, 32):
    train(AutoModelForCausalLM.from_pretrained("b"), None, rank)

serving = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("b"), "out-8")
prepare_model_for_compiled_hotswap(serving, target_rank=16)  # want HSW204
serving = torch.compile(serving)
with torch.inference_mode():
    serving(**{})
    hotswap_adapter(serving, "out-32", "default")
    serving(**{})
