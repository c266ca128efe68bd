"""Compiled in the constructor unless told otherwise; a later call loads an adapter."""
import torch
from diffusers import FluxPipeline

class Gen:
    def __init__(self, compile: bool = True, device="cuda"):
        self.pipe = FluxPipeline.from_pretrained("f", torch_dtype=torch.bfloat16)
        self.pipe.to(device)
        self.current = None
        if compile:
            self.optimize()

    def optimize(self):
        self.pipe.transformer.to(memory_format=torch.channels_last)
        self.pipe.transformer = torch.compile(self.pipe.transformer, mode="max-autotune", fullgraph=True)
        self.pipe.vae.decode = torch.compile(self.pipe.vae.decode)

    def set_lora(self, path, scale=1.0):
        if path == self.current:
            return
        if self.current is not None:
            self.pipe.unload_lora_weights()
        self.pipe.load_lora_weights(path, adapter_name="lora")  # want HSW206
        self.current = path

    def __call__(self, prompt, lora=None):
        if lora:
            self.set_lora(lora)
        with torch.inference_mode():
            return self.pipe(prompt).images[0]
