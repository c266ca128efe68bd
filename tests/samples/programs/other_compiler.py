"""stable-fast has a compile of its own, with other rules."""
import torch
from diffusers import StableDiffusionPipeline
from sfast.compilers.diffusion_pipeline_compiler import CompilationConfig, compile

pipe = StableDiffusionPipeline.from_pretrained("base/sd15", torch_dtype=torch.float16).to("cuda")
config = CompilationConfig.Default()
pipe = compile(pipe, config)
pipe("warm up")
pipe.load_lora_weights("loras/house")
pipe("a house")
