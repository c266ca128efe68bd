"""Four methods that somebody else calls, in an order that is not in this file."""
import torch
from diffusers import AutoPipelineForText2Image
class Engine:
    def __init__(self, model):
        self.pipe = AutoPipelineForText2Image.from_pretrained(model)
        self.pipe.enable_lora_hotswap(target_rank=64)
    def load(self, path):
        self.pipe.load_lora_weights(path, adapter_name="a")
    def compile(self):
        self.pipe.transformer.compile(fullgraph=True)
    def swap(self, path):
        self.pipe.load_lora_weights(path, adapter_name="a", hotswap=True)
    def run(self, prompt):
        return self.pipe(prompt).images[0]
