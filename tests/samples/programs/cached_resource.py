"""Streamlit: the resource is cached, the style box loads over it."""
import streamlit as st
import torch
from diffusers import AutoPipelineForText2Image
@st.cache_resource
def get_pipe():
    pipe = AutoPipelineForText2Image.from_pretrained("sdxl", torch_dtype=torch.float16).to("cuda")
    pipe.load_lora_weights("loras/a", adapter_name="a")
    pipe.unet = torch.compile(pipe.unet)
    pipe("warm", num_inference_steps=1)
    return pipe
pipe = get_pipe()
choice = st.selectbox("style", ["b", "c"])
if st.button("go"):
    pipe.load_lora_weights(f"loras/{choice}", adapter_name=choice)  # want HSW206
    st.image(pipe("x").images[0])
