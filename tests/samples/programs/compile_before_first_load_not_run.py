"""torch.compile is lazy: nothing ran before the load, so nothing is compiled twice."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-schnell").to("cuda")
pipe.transformer = torch.compile(pipe.transformer)
pipe.load_lora_weights("artist/ink", adapter_name="ink")
pipe.set_adapters(["ink"], adapter_weights=[0.7])
image = pipe("a pier", num_inference_steps=4).images[0]
