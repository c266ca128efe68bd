"""A mixin loads and compiles; the class that uses it swaps without a name."""
import torch
from diffusers import StableDiffusion3Pipeline
class Compiled:
    def setup(self):
        self.pipe = StableDiffusion3Pipeline.from_pretrained("sd3")
        self.pipe.enable_lora_hotswap(target_rank=32)
        self.pipe.load_lora_weights(self.first, adapter_name="main")
        self.pipe.transformer = torch.compile(self.pipe.transformer)
class Portraits(Compiled):
    first = "loras/portrait"
    def change(self, path):
        self.pipe.load_lora_weights(path, hotswap=True)  # want HSW207
    def draw(self, prompt):
        return self.pipe(prompt).images[0]
