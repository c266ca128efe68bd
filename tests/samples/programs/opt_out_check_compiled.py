"""check_compiled says that the author knows."""
import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.load_lora_weights("artist/ink", adapter_name="style")
pipe.enable_lora_hotswap(target_rank=64, check_compiled="ignore")
pipe.transformer.compile()
pipe("a pier")
