"""The wrapper has run: preparing the model behind it makes it compile again."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm")
model = PeftModel.from_pretrained(base, "adapters/support")
fast = torch.compile(model)
fast(input_ids=torch.ones(1, 8, dtype=torch.long))
prepare_model_for_compiled_hotswap(model, target_rank=64)  # want HSW201
hotswap_adapter(model, "adapters/sales", adapter_name="default")
fast(input_ids=torch.ones(1, 8, dtype=torch.long))
