"""The name is rebound to a new model before it is prepared."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

for path in ("adapters/a", "adapters/b"):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), path)
    prepare_model_for_compiled_hotswap(model, target_rank=64)
    model = torch.compile(model)
    model(torch.ones(1, 8, dtype=torch.long))
