"""A cache of compiled pipelines by name; the request loads an adapter into one of them."""
import torch
from diffusers import StableDiffusionXLPipeline
PIPES = {}

def load(name):
    pipe = StableDiffusionXLPipeline.from_pretrained(name).to('cuda')
    pipe.unet = torch.compile(pipe.unet)
    pipe("warm up")
    PIPES[name] = pipe
    return pipe

def generate(name, prompt, lora):
    pipe = PIPES[name] if name in PIPES else load(name)
    if lora:
        pipe.load_lora_weights(lora)  # want HSW206
    return pipe(prompt)
