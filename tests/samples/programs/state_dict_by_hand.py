"""Weights loaded by torch into the adapter: not the business of this linter."""
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
model = get_peft_model(base, LoraConfig(r=8))
model = torch.compile(model)
model("x")
set_peft_model_state_dict(model, torch.load("x"))
model("x")
