"""img2img shares the text2img transformer, which was compiled before the second adapter is added."""
import torch
from diffusers import FluxPipeline, FluxImg2ImgPipeline
t2i = FluxPipeline.from_pretrained("f").to("cuda")
t2i.enable_lora_hotswap(target_rank=32)
t2i.load_lora_weights("a", adapter_name="s")
t2i.transformer = torch.compile(t2i.transformer)
i2i = FluxImg2ImgPipeline.from_pipe(t2i)
t2i("x")
i2i.load_lora_weights("b", adapter_name="s", hotswap=True)
i2i("x")
