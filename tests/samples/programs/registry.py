"""A registry of builders, chosen by name."""
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
BUILDERS = {}
def register(name):
    def wrap(func):
        BUILDERS[name] = func
        return func
    return wrap
@register("flux")
def flux():
    pipe = FluxPipeline.from_pretrained("flux")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("one", adapter_name="slot")
    pipe.transformer.compile()
    return pipe
@register("sdxl")
def sdxl():
    pipe = StableDiffusionXLPipeline.from_pretrained("sdxl")
    pipe.load_lora_weights("one", adapter_name="slot")
    pipe.enable_lora_hotswap(target_rank=64)  # want HSW203
    pipe.unet.compile()
    return pipe
def serve(kind, path):
    pipe = BUILDERS[kind]()
    pipe.load_lora_weights(path, adapter_name="slot", hotswap=True)
