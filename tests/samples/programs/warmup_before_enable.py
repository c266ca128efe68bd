"""The warm-up compiles the bare transformer; enabling afterwards cannot help the code that exists."""
import torch
from diffusers import FluxPipeline


def build():
    pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell").to("cuda")
    pipe.transformer = torch.compile(pipe.transformer, fullgraph=True)
    pipe("warm up", num_inference_steps=1)
    return pipe


def main():
    pipe = build()
    pipe.enable_lora_hotswap(target_rank=64)  # want HSW201
    pipe.load_lora_weights("artist/ink", adapter_name="ink")
    pipe("a pier")


if __name__ == "__main__":
    main()
