"""The endpoint forgets hotswap=True: the name is taken, so it raises."""
import torch
from diffusers import StableDiffusionXLPipeline
from fastapi import FastAPI

app = FastAPI()
pipe = None


@app.on_event("startup")
async def startup():
    global pipe
    pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("tenants/default", adapter_name="tenant")
    pipe.unet.compile(fullgraph=True)


@app.post("/generate/{tenant}")
async def generate(tenant: str, prompt: str):
    pipe.load_lora_weights(f"tenants/{tenant}", adapter_name="tenant")  # want HSW216
    return pipe(prompt).images[0]
