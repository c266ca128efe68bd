"""A target rank from a config dict that also lists the adapters' ranks."""
import torch
from diffusers import FluxPipeline
CONFIG = {"target_rank": 16, "adapters": [{"path": "a", "rank": 16}, {"path": "b", "rank": 32}]}
pipe = FluxPipeline.from_pretrained("flux")
pipe.enable_lora_hotswap(target_rank=CONFIG["target_rank"])  # want HSW204
first, *others = CONFIG["adapters"]
pipe.load_lora_weights(first["path"], adapter_name="s")
pipe.transformer.compile()
for adapter in others:
    pipe.load_lora_weights(adapter["path"], adapter_name="s", hotswap=True)
    pipe("x")
