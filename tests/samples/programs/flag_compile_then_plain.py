"""With --compile, the later loads recompile."""
import argparse

import torch
from diffusers import FluxPipeline

parser = argparse.ArgumentParser()
parser.add_argument("--compile", action="store_true")
parser.add_argument("loras", nargs="+")
args = parser.parse_args()

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
if args.compile:
    pipe.transformer = torch.compile(pipe.transformer)
pipe("warm up")
for lora in args.loras:
    pipe.load_lora_weights(lora)  # want HSW206
    pipe("a pier")
    pipe.unload_lora_weights()
