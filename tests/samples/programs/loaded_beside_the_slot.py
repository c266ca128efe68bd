"""PEFT: a second adapter is loaded next to the hot-swapped one, and activated."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
model = PeftModel.from_pretrained(base, "a")
prepare_model_for_compiled_hotswap(model, target_rank=8)
model = torch.compile(model)
model("x")
hotswap_adapter(model, "b", adapter_name="default")
model.load_adapter("c", adapter_name="extra")  # want HSW206
model.set_adapter("extra")  # want HSW212
model("x")
