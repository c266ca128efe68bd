"""The wrapper has another name and has not run: preparing the model behind it is in time."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("base/llm")
model = PeftModel.from_pretrained(base, "adapters/support")
fast = torch.compile(model)
prepare_model_for_compiled_hotswap(model, target_rank=64)
fast(input_ids=torch.ones(1, 8, dtype=torch.long))
hotswap_adapter(model, "adapters/sales", adapter_name="default")
fast(input_ids=torch.ones(1, 8, dtype=torch.long))
