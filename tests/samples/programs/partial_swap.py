"""A handler function is passed around with functools.partial."""
import functools, torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
model = torch.compile(model)
swap = functools.partial(hotswap_adapter, model, adapter_name="default")
with torch.inference_mode():
    model("x")
    swap("b")  # want HSW205
    model("x")
