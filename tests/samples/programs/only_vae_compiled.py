"""try: hotswap, except: fall back to a plain load; on a pipeline that compiles only its VAE."""
import torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained("f")
pipe.vae.decode = torch.compile(pipe.vae.decode)
pipe.load_lora_weights("a", adapter_name="x")
def change(path):
    try:
        pipe.load_lora_weights(path, adapter_name="x", hotswap=True)
    except ValueError:
        pipe.unload_lora_weights()
        pipe.load_lora_weights(path, adapter_name="x")
