"""The pipeline is made anew before the next adapter."""
import torch
from diffusers import FluxPipeline


def load(lora):
    pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
    pipe.load_lora_weights(lora)
    pipe.transformer = torch.compile(pipe.transformer)
    return pipe


for lora in ["artist/ink", "artist/oil"]:
    pipe = load(lora)
    pipe("a pier")
    del pipe
    torch.cuda.empty_cache()
