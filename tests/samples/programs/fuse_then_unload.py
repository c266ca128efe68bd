"""Fused and unloaded before the next call: the compiled code sees the layers it knows."""
import torch
from diffusers import StableDiffusionXLPipeline

pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead")
pipe("warm up")


def render(prompt, lora):
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(lora_scale=0.8)
    pipe.unload_lora_weights()
    image = pipe(prompt).images[0]
    pipe.unfuse_lora()
    return image
