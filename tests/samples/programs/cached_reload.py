"""Streamlit: a new style is a new pipeline, compiled anew."""
import streamlit as st
import torch
from diffusers import AutoPipelineForText2Image
@st.cache_resource
def get_pipe(style):
    pipe = AutoPipelineForText2Image.from_pretrained("sdxl", torch_dtype=torch.float16).to("cuda")
    pipe.load_lora_weights(f"loras/{style}", adapter_name=style)
    pipe.unet = torch.compile(pipe.unet)
    return pipe
choice = st.selectbox("style", ["b", "c"])
if st.button("go"):
    st.image(get_pipe(choice)("x").images[0])
