"""A property makes the pipeline when it is first asked for; the first adapter loads, the others swap."""
import os
import torch
from diffusers import FluxPipeline, FluxFillPipeline
from huggingface_hub import hf_hub_download

MAX_RANK = int(os.getenv("MAX_RANK", "64"))
class FluxService:
    def __init__(self):
        self._pipe = None
        self._adapter = None

    @property
    def pipe(self):
        if self._pipe is None:
            self._pipe = FluxPipeline.from_pretrained("f", torch_dtype=torch.bfloat16).to("cuda")
            self._pipe.enable_lora_hotswap(target_rank=MAX_RANK)
        return self._pipe

    def use(self, repo, weight):
        path = hf_hub_download(repo, weight)
        if self._adapter is None:
            self.pipe.load_lora_weights(path, adapter_name="active")
            self.pipe.transformer = torch.compile(self.pipe.transformer, dynamic=True)
        elif self._adapter != path:
            self.pipe.load_lora_weights(path, adapter_name="active", hotswap=True)
        self._adapter = path

    def run(self, prompt):
        return self.pipe(prompt).images[0]
