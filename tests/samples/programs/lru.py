"""A server that adds each adapter the first time it is asked for."""
import torch
from diffusers import StableDiffusionXLPipeline
class LoRAServer:
    def __init__(self, max_loaded=4):
        self.pipe = StableDiffusionXLPipeline.from_pretrained("x").to("cuda")
        self.loaded = {}
        self.pipe.unet = torch.compile(self.pipe.unet, mode="max-autotune")
        self.warmup()
    def warmup(self):
        for _ in range(2):
            self.pipe("hi", num_inference_steps=1)
    def ensure(self, name, path):
        if name not in self.loaded:
            self.pipe.load_lora_weights(path, adapter_name=name)  # want HSW206
            self.loaded[name] = True
        self.pipe.set_adapters([name])
    def generate(self, name, path, prompt):
        self.ensure(name, path)
        return self.pipe(prompt)
