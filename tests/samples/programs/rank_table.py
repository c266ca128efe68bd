"""A table of adapters with their ranks; the slot is as wide as the first one, not the widest."""
import torch
from diffusers import FluxPipeline

ADAPTERS = [
    {"path": "artist/ink", "rank": 16},
    {"path": "artist/oil", "rank": 32},
    {"path": "artist/chalk", "rank": 64},
]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=ADAPTERS[0]["rank"])  # want HSW204
pipe.load_lora_weights(ADAPTERS[0]["path"], adapter_name="style")
pipe.transformer.compile()
for adapter in ADAPTERS[1:]:
    pipe.load_lora_weights(adapter["path"], adapter_name="style", hotswap=True)
    pipe("a pier")
