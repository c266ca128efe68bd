"""An application factory: one endpoint swaps, the other one forgets the name."""
import torch
from fastapi import FastAPI
from diffusers import FluxPipeline
def create_app():
    app = FastAPI()
    pipe = FluxPipeline.from_pretrained("f").to("cuda")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("a", adapter_name="slot")
    pipe.transformer.compile()

    @app.post("/gen")
    def gen(prompt: str, lora: str):
        pipe.load_lora_weights(lora, adapter_name="slot", hotswap=True)
        return pipe(prompt)

    @app.post("/bad")
    def bad(prompt: str, lora: str):
        pipe.load_lora_weights(lora, hotswap=True)  # want HSW207
        return pipe(prompt)
    return app
app = create_app()
