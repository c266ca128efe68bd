"""The same service with one name."""
import torch
from diffusers import FluxPipeline

SLOT = "slot"


class StyleService:
    def __init__(self, model_id: str):
        self.pipe = FluxPipeline.from_pretrained(model_id, torch_dtype=torch.bfloat16).to("cuda")
        self.loaded = False

    def switch(self, path: str) -> None:
        if not self.loaded:
            self.pipe.enable_lora_hotswap(target_rank=128)
        self.pipe.load_lora_weights(path, adapter_name=SLOT, hotswap=self.loaded)
        if not self.loaded:
            self.pipe.transformer = torch.compile(self.pipe.transformer, fullgraph=True)
            self.loaded = True

    def render(self, prompt: str):
        return self.pipe(prompt).images[0]


service = StyleService("black-forest-labs/FLUX.1-dev")
for style in ("artist/ink", "artist/oil"):
    service.switch(style)
    service.render("a pier")
