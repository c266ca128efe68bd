"""A cog predictor that keeps two adapters and activates one per request."""
import torch
from cog import BasePredictor, Input, Path
from diffusers import DiffusionPipeline


class Predictor(BasePredictor):
    def setup(self):
        self.pipe = DiffusionPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=32)
        self.pipe.load_lora_weights("looks/film", adapter_name="film")
        self.pipe.load_lora_weights("looks/anime", adapter_name="anime")
        self.pipe.unet = torch.compile(self.pipe.unet, mode="reduce-overhead", fullgraph=True)

    def predict(self, prompt: str = Input(), look: str = Input(choices=["film", "anime"])) -> Path:
        self.pipe.set_adapters([look], adapter_weights=[0.9])  # want HSW212
        self.pipe(prompt).images[0].save("/tmp/out.png")
        return Path("/tmp/out.png")
