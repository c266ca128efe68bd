"""A lazily made pipeline; a later request loads another style plainly."""
import torch
from diffusers import StableDiffusionXLPipeline

_pipe = None


def get_pipe():
    global _pipe
    if _pipe is None:
        _pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl").to("cuda")
        _pipe.unet = torch.compile(_pipe.unet)
    return _pipe


def render(prompt, style):
    pipe = get_pipe()
    pipe.load_lora_weights(style, adapter_name=style)  # want HSW206
    pipe.set_adapters(style)
    return pipe(prompt).images[0]
