"""unfuse before a swap, fuse after it: right order."""
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained("f")
pipe.enable_lora_hotswap(target_rank=32)
pipe.load_lora_weights("a", adapter_name="s")
pipe.fuse_lora()
pipe.transformer.compile()
for path in ("b", "c"):
    pipe.unfuse_lora()
    pipe.load_lora_weights(path, adapter_name="s", hotswap=True)
    pipe.fuse_lora()
    pipe("x")
