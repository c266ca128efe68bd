"""Whichever denoiser the pipeline has is compiled; then an adapter is added."""
import torch
from diffusers import DiffusionPipeline


def load(model_id):
    pipe = DiffusionPipeline.from_pretrained(model_id, torch_dtype=torch.bfloat16).to("cuda")
    for name in ("unet", "transformer"):
        if hasattr(pipe, name):
            setattr(pipe, name, torch.compile(getattr(pipe, name), mode="reduce-overhead"))
    return pipe


pipe = load("base/any")
pipe("warm up")
pipe.load_lora_weights("loras/house", adapter_name="house")  # want HSW206
pipe("a house")
