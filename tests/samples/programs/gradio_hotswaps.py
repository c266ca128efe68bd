"""The same space, with hot-swapping done right."""
import gradio as gr
import torch
from diffusers import FluxPipeline

STYLES = {"comic": "studio/comic-flux", "clay": "studio/clay-flux"}
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
pipe.enable_lora_hotswap(target_rank=64)
pipe.load_lora_weights(STYLES["comic"], adapter_name="style")
pipe.transformer = torch.compile(pipe.transformer, mode="max-autotune")


def generate(prompt, style):
    pipe.load_lora_weights(STYLES[style], adapter_name="style", hotswap=True)
    return pipe(prompt, num_inference_steps=28).images[0]


gr.Interface(generate, ["text", gr.Radio(list(STYLES))], "image").launch()
