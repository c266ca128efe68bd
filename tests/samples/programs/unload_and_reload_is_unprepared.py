"""The preparation went with the first adapter: after unload and reload the slot is unprepared."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("artist/ink", adapter_name="style")
pipe.unload_lora_weights()
pipe.load_lora_weights("artist/oil", adapter_name="style")
pipe.transformer.compile()
pipe("a pier")
pipe.load_lora_weights("artist/chalk", adapter_name="style", hotswap=True)  # want HSW205
pipe("a pier")
