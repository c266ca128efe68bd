"""Local pipe kept on self at the end; the endpoint toggles."""
import torch
from diffusers import FluxPipeline
class S:
    def load(self):
        pipe = FluxPipeline.from_pretrained("f").to("cuda")
        pipe.load_lora_weights("a", adapter_name="s")
        pipe.transformer = torch.compile(pipe.transformer)
        self.pipe = pipe
    def swap(self, path):
        self.pipe.load_lora_weights(path, adapter_name="s", hotswap=True)  # want HSW205
    def run(self, p):
        return self.pipe(p)
