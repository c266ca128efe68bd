"""The base class loads, the derived class enables hot-swapping after that."""
import torch
from diffusers import FluxPipeline


class Base:
    def __init__(self, name):
        self.pipe = FluxPipeline.from_pretrained(name, torch_dtype=torch.bfloat16)
        self.pipe.load_lora_weights("artist/ink", adapter_name="style")


class Swapping(Base):
    def __init__(self, name):
        super().__init__(name)
        self.pipe.enable_lora_hotswap(target_rank=8)  # want HSW203


Swapping("black-forest-labs/FLUX.1-dev")
