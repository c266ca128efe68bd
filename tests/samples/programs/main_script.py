"""A benchmark with two flags."""
import argparse, time
import torch
from diffusers import DiffusionPipeline

def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--compile", action="store_true")
    p.add_argument("--hotswap", action="store_true")
    return p.parse_args()

def load(args):
    pipe = DiffusionPipeline.from_pretrained("f", torch_dtype=torch.bfloat16).to("cuda")
    if args.hotswap:
        pipe.enable_lora_hotswap(target_rank=128)
    return pipe

def main():
    args = parse()
    pipe = load(args)
    loras = ["a", "b"]
    for i, lora in enumerate(loras):
        if args.hotswap:
            pipe.load_lora_weights(lora, adapter_name="d", hotswap=i > 0)
        else:
            pipe.load_lora_weights(lora, adapter_name=f"d{i}")
            pipe.set_adapters(f"d{i}")
        if i == 0 and args.compile:
            pipe.transformer.compile()
        t = time.time()
        pipe("x")
        print(time.time() - t)

main()
