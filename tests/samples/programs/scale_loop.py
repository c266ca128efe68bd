"""A slider sets the strength in every layer, with a float."""
import torch, gradio as gr
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
prepare_model_for_compiled_hotswap(model, target_rank=16)
model = torch.compile(model)
def strength(value: float):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["default"] = float(value)  # want HSW210
def swap(path):
    hotswap_adapter(model, path, adapter_name="default")
def talk(text):
    with torch.inference_mode():
        return model(text)
with gr.Blocks() as demo:
    gr.Slider().change(strength)
    gr.Textbox().submit(talk)
demo.launch()
