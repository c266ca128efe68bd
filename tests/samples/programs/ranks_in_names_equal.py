"""Equal ranks are documented in the names of the folders."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "loras/a-r16-alpha32")
model = torch.compile(model)
model("x")
hotswap_adapter(model, "loras/b-r16-alpha32", adapter_name="default")
model("x")
