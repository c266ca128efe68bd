"""Compiled by a conditional expression."""
import torch
from diffusers import FluxPipeline
def main(args):
    pipe = FluxPipeline.from_pretrained("f")
    pipe.transformer = torch.compile(pipe.transformer) if args.compile else pipe.transformer
    pipe("x")
    pipe.load_lora_weights("a", adapter_name="a")  # want HSW206
    pipe("x")
