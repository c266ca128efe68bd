"""A worker: the first job loads and compiles, the later ones swap."""
import torch, queue
from diffusers import FluxPipeline
def worker(q):
    pipe = FluxPipeline.from_pretrained("f").to("cuda")
    pipe.enable_lora_hotswap(target_rank=64)
    loaded = False
    while True:
        job = q.get()
        if job is None:
            break
        if not loaded:
            pipe.load_lora_weights(job.lora, adapter_name="slot")
            pipe.transformer.compile()
            loaded = True
        else:
            pipe.load_lora_weights(job.lora, adapter_name="slot", hotswap=True)
        job.done(pipe(job.prompt).images[0])
