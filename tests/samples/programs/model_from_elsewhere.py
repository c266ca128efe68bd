"""The same with preparation after the compile: seen."""
import torch
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from app.models import build_model
model = build_model("llama", adapter="a")
compiled = torch.compile(model, fullgraph=True)
prepare_model_for_compiled_hotswap(compiled, target_rank=32)  # want HSW201
