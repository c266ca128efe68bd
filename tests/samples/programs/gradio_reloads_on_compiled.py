"""A gradio space: every request loads the style that was picked into a compiled transformer."""
import gradio as gr
import torch
from diffusers import FluxPipeline

STYLES = {"comic": "studio/comic-flux", "clay": "studio/clay-flux"}
pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16).to("cuda")
pipe.transformer = torch.compile(pipe.transformer, mode="max-autotune")


def generate(prompt, style):
    pipe.load_lora_weights(STYLES[style])  # want HSW206
    image = pipe(prompt, num_inference_steps=28).images[0]
    pipe.unload_lora_weights()
    return image


gr.Interface(generate, ["text", gr.Radio(list(STYLES))], "image").launch()
