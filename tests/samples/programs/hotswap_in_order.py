"""This project's own engine; its scalings stay tensors."""
import hotswap
import torch
from transformers import AutoModelForCausalLM

plan = hotswap.plan(["adapters/a", "adapters/b"])
model = hotswap.load(AutoModelForCausalLM.from_pretrained("base/llm"), plan, "adapters/a")
compiled = torch.compile(model)
compiled(torch.ones(1, 8, dtype=torch.long))
hotswap.swap(compiled, "adapters/b")
for module in model.modules():
    if hasattr(module, "scaling"):
        module.set_scale("default", 0.5)
compiled(torch.ones(1, 8, dtype=torch.long))
