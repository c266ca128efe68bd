"""Half strength, written as a number; and once more as a tensor."""
import torch
from peft import PeftModel
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base/llm"), "adapters/support")
prepare_model_for_compiled_hotswap(model, target_rank=64)
compiled = torch.compile(model)
compiled(torch.ones(1, 8, dtype=torch.long))
for name, module in model.named_modules():
    if hasattr(module, "scaling"):
        module.scaling["default"] = 0.5  # want HSW210
for name, module in model.named_modules():
    if hasattr(module, "scaling"):
        module.scaling["default"] = torch.tensor(0.5)
compiled(torch.ones(1, 8, dtype=torch.long))
