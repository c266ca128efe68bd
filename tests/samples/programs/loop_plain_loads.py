"""Each turn adds one more adapter to a model that was compiled on the first."""
import torch
from diffusers import FluxPipeline

LORAS = ["artist/ink", "artist/oil", "artist/chalk"]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.transformer.compile(fullgraph=True)
for number, lora in enumerate(LORAS):
    pipe.load_lora_weights(lora, adapter_name=f"style_{number}")  # want HSW206
    pipe.set_adapters(f"style_{number}")
    pipe("a pier").images[0].save(f"{number}.png")
