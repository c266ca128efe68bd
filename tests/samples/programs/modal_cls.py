"""A Modal class: the container compiles and warms up, then every request loads its adapter."""
import modal
app = modal.App("flux")
@app.cls(gpu="H100")
class Inference:
    @modal.enter()
    def boot(self):
        import torch
        from diffusers import FluxPipeline
        self.pipe = FluxPipeline.from_pretrained("f").to("cuda")
        self.pipe.transformer = torch.compile(self.pipe.transformer)
        self.pipe("warm")

    @modal.method()
    def run(self, prompt, lora):
        self.pipe.load_lora_weights(lora)  # want HSW206
        out = self.pipe(prompt)
        self.pipe.unload_lora_weights()
        return out
