"""A loader with defaults, and a swap of the name that it loaded."""
import torch
from diffusers import FluxPipeline
def load_pipe(model_id="f", compile=True, lora=None, rank=16):
    pipe = FluxPipeline.from_pretrained(model_id)
    if lora is not None:
        pipe.enable_lora_hotswap(target_rank=rank)
        pipe.load_lora_weights(lora, adapter_name="default")
    if compile:
        pipe.transformer = torch.compile(pipe.transformer)
    return pipe
def swap(pipe, lora):
    pipe.load_lora_weights(lora, adapter_name="default", hotswap=True)
pipe = load_pipe(lora="x")
pipe("x")
swap(pipe, "y")
pipe("x")
