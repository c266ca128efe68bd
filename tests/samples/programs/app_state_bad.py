"""The pipeline hangs on app.state; a style endpoint activates adapters by name."""
import torch
from fastapi import FastAPI, Request
from diffusers import FluxPipeline
app = FastAPI()
@app.on_event("startup")
def startup():
    pipe = FluxPipeline.from_pretrained("flux").to("cuda")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("loras/ink", adapter_name="slot")
    pipe.transformer = torch.compile(pipe.transformer)
    pipe("warm up")
    app.state.pipe = pipe
@app.put("/style")
def style(request: Request, path: str, strength: float = 1.0):
    pipe = request.app.state.pipe
    pipe.load_lora_weights(path, adapter_name="slot", hotswap=True)
    pipe.set_adapters(["slot"], adapter_weights=[strength])  # want HSW210
    return {"ok": True}
