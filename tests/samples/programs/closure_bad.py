"""create_app returns closures; the swap endpoint loads beside what is there."""
import torch
from flask import Flask, request
from diffusers import FluxPipeline
def create_app():
    app = Flask(__name__)
    pipe = FluxPipeline.from_pretrained("flux").to("cuda")
    pipe.enable_lora_hotswap(target_rank=64)
    pipe.load_lora_weights("a", adapter_name="a")
    pipe.transformer.compile()
    pipe("warm up")
    @app.post("/swap/<name>")
    def swap(name):
        pipe.load_lora_weights(f"loras/{name}", adapter_name=name)  # want HSW206
        pipe.set_adapters(name)  # want HSW212
        return {"ok": True}
    @app.post("/draw")
    def draw():
        return pipe(request.json["prompt"]).images[0].tobytes()
    return app
