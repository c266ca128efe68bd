"""Benchmark script: the compile flag comes before the hot-swap flag."""
import argparse
import torch
from diffusers import StableDiffusionXLPipeline
def main(argv=None):
    p = argparse.ArgumentParser()
    p.add_argument("--compile", action="store_true")
    p.add_argument("loras", nargs="+")
    args = p.parse_args(argv)
    pipe = StableDiffusionXLPipeline.from_pretrained("sdxl").to("cuda")
    if args.compile:
        pipe.unet.compile(fullgraph=True)
    pipe.enable_lora_hotswap(target_rank=64)  # want HSW201
    for i, path in enumerate(args.loras):
        pipe.load_lora_weights(path, adapter_name="slot", hotswap=bool(i))
        pipe("a photo")
main()
