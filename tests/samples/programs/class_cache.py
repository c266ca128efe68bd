"""Class state dict of pipes by key, prepared."""
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
class Zoo:
    pipes = {}
    @classmethod
    def get(cls, kind):
        if kind not in cls.pipes:
            maker = FluxPipeline if kind == "flux" else StableDiffusionXLPipeline
            pipe = maker.from_pretrained(kind).to("cuda")
            pipe.enable_lora_hotswap(target_rank=64)
            pipe.load_lora_weights("base", adapter_name="slot")
            getattr(pipe, "transformer", None) or pipe.unet
            cls.pipes[kind] = pipe
        return cls.pipes[kind]
    @classmethod
    def swap(cls, kind, path):
        pipe = cls.get(kind)
        pipe.load_lora_weights(path, adapter_name="slot", hotswap=True)
        return pipe
