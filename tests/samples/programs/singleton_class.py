"""A singleton warms up in its constructor; each job loads one more adapter."""
import torch
from diffusers import DiffusionPipeline
class Pipeline:
    _instance = None
    @classmethod
    def get(cls):
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance
    def __init__(self):
        self.pipe = DiffusionPipeline.from_pretrained("x")
        self.pipe.unet = torch.compile(self.pipe.unet)
        self.pipe("warm")
    def apply(self, lora):
        self.pipe.load_lora_weights(lora, adapter_name=lora)  # want HSW206
        self.pipe.set_adapters(lora)

def handler(job):
    p = Pipeline.get()
    p.apply(job["lora"])
    return p.pipe(job["prompt"])
