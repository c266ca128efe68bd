"""The first turn loads and compiles, the others swap."""
import torch
from diffusers import FluxPipeline

LORAS = [{"repo": "artist/ink"}, {"repo": "artist/oil", "weight": "oil.safetensors"}]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
for index, lora in enumerate(LORAS):
    pipe.load_lora_weights(
        lora["repo"], weight_name=lora.get("weight"), adapter_name="style", hotswap=bool(index)
    )
    if index == 0:
        pipe.transformer.compile(fullgraph=True)
    for _ in range(3):
        image = pipe("a pier").images[0]
    image.save(f"{index}.png")
