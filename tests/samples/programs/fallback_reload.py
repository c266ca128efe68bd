"""If the hot swap fails, reload on purpose."""
import logging

import torch
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev").to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights("artist/ink", adapter_name="style")
pipe.transformer.compile()


def switch(path):
    try:
        pipe.load_lora_weights(path, adapter_name="style", hotswap=True)
    except ValueError as error:
        logging.warning("hot swap failed: %s", error)
        pipe.unload_lora_weights()
        pipe.load_lora_weights(path, adapter_name="style")
    return pipe("a pier").images[0]
