"""The second pipeline loads without hotswap into the transformer that the first one compiled."""
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline

text = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
text.transformer.compile()
text("warm up")
image = FluxImg2ImgPipeline.from_pipe(text)
image.load_lora_weights("artist/ink", adapter_name="ink")  # want HSW206
image("a pier", image="pier.png")
