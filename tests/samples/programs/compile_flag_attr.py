"""Hot-swapping is an option; without it, the adapter is deleted and loaded on purpose."""
import torch
from diffusers import FluxPipeline
class S:
    def __init__(self, cfg):
        self.cfg = cfg
        self.pipe = None
        self.hotswap = cfg.hotswap
    def load(self):
        self.pipe = FluxPipeline.from_pretrained(self.cfg.model)
        if self.hotswap:
            self.pipe.enable_lora_hotswap(target_rank=self.cfg.rank)
        self.pipe.load_lora_weights(self.cfg.lora, adapter_name="l")
        if self.cfg.compile:
            self.pipe.transformer.compile()
    def change(self, lora):
        if self.hotswap:
            self.pipe.load_lora_weights(lora, adapter_name="l", hotswap=True)
        else:
            self.pipe.delete_adapters("l")
            self.pipe.load_lora_weights(lora, adapter_name="l")
    def run(self, p):
        return self.pipe(p)
