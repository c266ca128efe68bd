"""A KServe model whose predict() always hot-swaps: nothing is ever loaded first."""
import torch
from kserve import Model
from diffusers import FluxPipeline
class Flux(Model):
    def load(self):
        self.pipe = FluxPipeline.from_pretrained("flux").to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=64)
        self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
        self.ready = True
    def predict(self, request, headers=None):
        self.pipe.load_lora_weights(request["lora"], adapter_name="slot", hotswap=True)  # want HSW209
        return self.pipe(request["prompt"]).images[0]
