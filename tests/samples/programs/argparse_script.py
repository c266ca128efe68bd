"""Benchmark script: options decide whether to compile and to hot-swap."""
import argparse, time
import torch
from diffusers import StableDiffusionXLPipeline
def parse_args():
    p = argparse.ArgumentParser()
    p.add_argument("--compile", action="store_true")
    p.add_argument("--hotswap", action="store_true")
    p.add_argument("--rank", type=int, default=64)
    p.add_argument("loras", nargs="+")
    return p.parse_args()
def main():
    args = parse_args()
    pipe = StableDiffusionXLPipeline.from_pretrained("sdxl").to("cuda")
    if args.hotswap:
        pipe.enable_lora_hotswap(target_rank=args.rank)
    first, *rest = args.loras
    pipe.load_lora_weights(first, adapter_name="slot")
    if args.compile:
        pipe.unet = torch.compile(pipe.unet, fullgraph=True)
    for path in rest:
        start = time.perf_counter()
        if args.hotswap:
            pipe.load_lora_weights(path, adapter_name="slot", hotswap=True)
        else:
            pipe.unload_lora_weights()
            pipe.load_lora_weights(path, adapter_name="slot")
        pipe("a photo")
        print(time.perf_counter() - start)
if __name__ == "__main__":
    main()
