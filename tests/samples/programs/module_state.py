"""Module dict as cache; loaded names tracked in a set."""
import torch
from diffusers import FluxPipeline
LOADED = set()
STATE = {"pipe": None, "ready": False}
def pipe():
    if STATE["pipe"] is None:
        p = FluxPipeline.from_pretrained("f")
        p.enable_lora_hotswap(target_rank=64)
        STATE["pipe"] = p
    return STATE["pipe"]
def use(name, path):
    p = pipe()
    if not STATE["ready"]:
        p.load_lora_weights(path, adapter_name="slot")
        p.transformer.compile()
        STATE["ready"] = True
    else:
        p.load_lora_weights(path, adapter_name="slot", hotswap=True)
    LOADED.add(name)
    return p("x")
