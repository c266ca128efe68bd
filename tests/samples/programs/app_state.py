"""The pipeline lives on app.state; the endpoint swaps a name that start-up did not load."""
import torch
from fastapi import FastAPI, Request
from diffusers import StableDiffusionXLPipeline
app = FastAPI()

@app.on_event("startup")
def startup():
    app.state.pipe = StableDiffusionXLPipeline.from_pretrained("f").to('cuda')
    app.state.pipe.enable_lora_hotswap(target_rank=64)
    app.state.pipe.load_lora_weights("a", adapter_name="a")
    app.state.pipe.unet = torch.compile(app.state.pipe.unet)

@app.post("/x")
def gen(request: Request, prompt: str, lora: str):
    app.state.pipe.load_lora_weights(lora, adapter_name="b", hotswap=True)  # want HSW208
    return app.state.pipe(prompt)
