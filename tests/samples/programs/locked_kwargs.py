"""Pipelines in threads, with a lock; strength set before the first load through kwargs."""
import threading, torch
from diffusers import FluxPipeline
lock = threading.Lock()
options = dict(adapter_name="s", hotswap=True)
class P:
    def __init__(self):
        self.pipe = FluxPipeline.from_pretrained("f")
        self.pipe.enable_lora_hotswap(target_rank=32)
        self.pipe.load_lora_weights("a", adapter_name="s")
        self.pipe.transformer.compile()
    def swap(self, path):
        with lock:
            self.pipe.load_lora_weights(path, **options)
    def serve(self):
        threading.Thread(target=self.swap, args=("b",)).start()
        return self.pipe("x")
