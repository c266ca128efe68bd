"""A benchmark that compiles anew for each adapter, and means it."""
import torch
from diffusers import FluxPipeline

LORAS = ["artist/ink", "artist/oil"]
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
for lora in LORAS:
    torch._dynamo.reset()
    pipe.load_lora_weights(lora, adapter_name="style")
    pipe.transformer.compile(fullgraph=True)
    pipe("a pier")
    pipe.unload_lora_weights()
