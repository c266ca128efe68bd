"""A helper from elsewhere may have prepared the pipeline."""
import torch
from diffusers import FluxPipeline

from mycompany.serving import make_ready

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
make_ready(pipe)
pipe.transformer.compile()
pipe("a pier")
pipe.load_lora_weights("artist/oil", adapter_name="style", hotswap=True)
