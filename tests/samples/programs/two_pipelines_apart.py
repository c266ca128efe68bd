"""One pipeline is compiled, the other one loads adapters."""
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline

fast = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell").to("cuda")
fast.transformer = torch.compile(fast.transformer)
fast("warm up")
styled = StableDiffusionXLPipeline.from_pretrained("base/sdxl").to("cuda")


def draft(prompt):
    return fast(prompt).images[0]


def final(prompt, style):
    styled.load_lora_weights(style)
    picture = styled(prompt).images[0]
    styled.unload_lora_weights()
    return picture
