"""Two pipelines around one transformer: loading through one shows in the other."""
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline

text = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
text.enable_lora_hotswap(target_rank=64)
text.load_lora_weights("artist/ink", adapter_name="style")
text.transformer.compile()
image = FluxImg2ImgPipeline(**text.components)


def draw(prompt):
    return text(prompt).images[0]


def redraw(prompt, picture, style):
    image.load_lora_weights(style, adapter_name="style", hotswap=True)
    return image(prompt, image=picture).images[0]
