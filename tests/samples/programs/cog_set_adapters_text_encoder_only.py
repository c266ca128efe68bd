"""Only the text encoder and the VAE are compiled: activating an adapter of the UNet costs nothing."""
import torch
from cog import BasePredictor, Input, Path
from diffusers import DiffusionPipeline


class Predictor(BasePredictor):
    def setup(self):
        self.pipe = DiffusionPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
        self.pipe.enable_lora_hotswap(target_rank=32)
        self.pipe.load_lora_weights("looks/film", adapter_name="film")
        self.pipe.load_lora_weights("looks/anime", adapter_name="anime")
        self.pipe.text_encoder = torch.compile(self.pipe.text_encoder)
        self.pipe.vae.decode = torch.compile(self.pipe.vae.decode, fullgraph=True)

    def predict(self, prompt: str = Input(), look: str = Input()) -> Path:
        self.pipe.set_adapters([look], adapter_weights=[0.9])
        self.pipe(prompt).images[0].save("/tmp/out.png")
        return Path("/tmp/out.png")
