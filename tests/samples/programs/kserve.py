"""A KServe model: load() sets up, predict() swaps what the request names; the first request is the first load."""
import torch
from kserve import Model
from diffusers import FluxPipeline
class Flux(Model):
    def load(self):
        self.pipe = FluxPipeline.from_pretrained("flux").to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=64)
        self.loaded = None
        self.ready = True
    def predict(self, request, headers=None):
        lora = request["lora"]
        if self.loaded is None:
            self.pipe.load_lora_weights(lora, adapter_name="slot")
            self.pipe.transformer.compile_repeated_blocks(fullgraph=True)
        elif lora != self.loaded:
            self.pipe.load_lora_weights(lora, adapter_name="slot", hotswap=True)
        self.loaded = lora
        return self.pipe(request["prompt"]).images[0]
