"""The base class makes and compiles what the derived class loads into."""
import torch
from diffusers import FluxPipeline
class Base:
    def __init__(self):
        self.pipe = None
    def setup(self):
        self.pipe = FluxPipeline.from_pretrained("f")
        self.pipe.transformer = torch.compile(self.pipe.transformer)
        self.pipe("warm")
class Styled(Base):
    def predict(self, prompt, lora):
        self.pipe.load_lora_weights(lora, adapter_name="x")  # want HSW206
        return self.pipe(prompt)
