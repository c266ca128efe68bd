"""Prepared and compiled under the same flag; loaded plainly under the other."""
import argparse

import torch
from diffusers import FluxPipeline

parser = argparse.ArgumentParser()
parser.add_argument("--compile", action="store_true")
parser.add_argument("loras", nargs="+")
args = parser.parse_args()

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
if args.compile:
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights(args.loras[0], adapter_name="style")
    pipe.transformer.compile()
else:
    pipe.load_lora_weights(args.loras[0], adapter_name="style")

pipe("a pier")
for lora in args.loras[1:]:
    if args.compile:
        pipe.load_lora_weights(lora, adapter_name="style", hotswap=True)
    else:
        pipe.unload_lora_weights()
        pipe.load_lora_weights(lora, adapter_name="style")
    pipe("a pier")
