"""Loaded, fused and compiled by flags, all before the first run."""
import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
def setup(args):
    pipe = DiffusionPipeline.from_pretrained("x")
    if args.lora:
        pipe.load_lora_weights(args.lora, adapter_name="l")
        pipe.set_adapters(["l"], [args.scale])
        if args.fuse:
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    if args.compile:
        torch._inductor.config.conv_1x1_as_mm = True
        pipe.transformer = torch.compile(pipe.transformer)
        pipe.vae.decode = torch.compile(pipe.vae.decode)
    return pipe
def main(args):
    pipe = setup(args)
    for _ in range(3):
        pipe("x")
