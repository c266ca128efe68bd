"""The pipeline is made by a helper of another module; only what is seen counts."""
import torch
from app.models import build_pipeline
pipe = build_pipeline("flux")
pipe.transformer = torch.compile(pipe.transformer)
pipe("x")
pipe.load_lora_weights("b", adapter_name="s", hotswap=True)
pipe("x")
