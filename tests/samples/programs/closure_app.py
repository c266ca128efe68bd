"""create_app returns closures over a prepared pipeline."""
import torch
from flask import Flask, request
from diffusers import FluxPipeline
def create_app(config=None):
    app = Flask(__name__)
    pipe = FluxPipeline.from_pretrained("flux").to("cuda")
    pipe.enable_lora_hotswap(target_rank=(config or {}).get("rank", 64))
    pipe.load_lora_weights("a", adapter_name="lora")
    pipe.transformer.compile()
    current = {"path": "a"}
    @app.post("/swap")
    def swap():
        path = request.json["path"]
        if path != current["path"]:
            pipe.load_lora_weights(path, adapter_name="lora", hotswap=True)
            current["path"] = path
        return {"ok": True}
    @app.post("/draw")
    def draw():
        return pipe(request.json["prompt"]).images[0].tobytes()
    return app
