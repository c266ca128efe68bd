"""What the caller passes on is not known here, so nothing is said."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.transformer.compile()
pipe("warm up")


def load(path, **options):
    pipe.load_lora_weights(path, **options)
    return pipe("a pier")
