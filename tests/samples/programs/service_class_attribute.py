"""A service: __init__ loads, compile() is a method, switch() swaps with another name."""
import torch
from diffusers import FluxPipeline


class StyleService:
    def __init__(self, model_id: str):
        self.pipe = FluxPipeline.from_pretrained(model_id, torch_dtype=torch.bfloat16).to("cuda")
        self._load_first()
        self._compile()

    def _load_first(self):
        self.pipe.enable_lora_hotswap(target_rank=128)
        self.pipe.load_lora_weights("artist/ink", adapter_name="slot")

    def _compile(self):
        self.pipe.transformer = torch.compile(self.pipe.transformer, fullgraph=True)

    def switch(self, path: str) -> None:
        self.pipe.load_lora_weights(path, adapter_name="style", hotswap=True)  # want HSW208

    def render(self, prompt: str):
        return self.pipe(prompt).images[0]
