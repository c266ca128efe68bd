"""A gradio app inside a function, whose handler loads into the compiled transformer."""
import gradio as gr, torch
from diffusers import FluxPipeline
def main():
    pipe = FluxPipeline.from_pretrained("f").to("cuda")
    pipe.transformer = torch.compile(pipe.transformer)

    def generate(prompt, lora):
        pipe.load_lora_weights(lora)  # want HSW206
        img = pipe(prompt).images[0]
        pipe.unload_lora_weights()
        return img

    gr.Interface(fn=generate, inputs=["text", "text"], outputs="image").launch()

if __name__ == "__main__":
    main()
