"""A chat server prepares what is compiled already."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("base/llm")
base = AutoModelForCausalLM.from_pretrained("base/llm", torch_dtype=torch.bfloat16).to("cuda")
model = PeftModel.from_pretrained(base, "adapters/support")
model = torch.compile(model, mode="reduce-overhead")
prepare_model_for_compiled_hotswap(model, target_rank=64)  # want HSW201


def chat(message, adapter):
    hotswap_adapter(model, adapter, adapter_name="default", torch_device="cuda")
    with torch.inference_mode():
        return model.generate(**tokenizer(message, return_tensors="pt"))
