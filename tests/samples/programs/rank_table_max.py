"""The widest of the table."""
import torch
from diffusers import FluxPipeline

ADAPTERS = [
    {"path": "artist/ink", "rank": 16},
    {"path": "artist/oil", "rank": 32},
    {"path": "artist/chalk", "rank": 64},
]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=max(adapter["rank"] for adapter in ADAPTERS))
pipe.load_lora_weights(ADAPTERS[0]["path"], adapter_name="style")
pipe.transformer.compile()
for adapter in ADAPTERS[1:]:
    pipe.load_lora_weights(adapter["path"], adapter_name="style", hotswap=True)
    pipe("a pier")
