"""oneflow's compiler: not torch.compile."""
import torch
from diffusers import StableDiffusionXLPipeline
from onediff.infer_compiler import oneflow_compile

pipe = StableDiffusionXLPipeline.from_pretrained("base/sdxl", torch_dtype=torch.float16).to("cuda")
pipe.unet = oneflow_compile(pipe.unet)
pipe("warm up")
pipe.load_lora_weights("loras/house", adapter_name="house")
pipe("a house")
