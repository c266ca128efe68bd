"""Each turn wraps the wrapper again."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/a")
prepare_model_for_compiled_hotswap(model, target_rank=64)
for path in ("adapters/a", "adapters/b", "adapters/c"):
    hotswap_adapter(model, path, adapter_name="default")
    model = torch.compile(model)  # want HSW215
    model(torch.ones(1, 8, dtype=torch.long))
