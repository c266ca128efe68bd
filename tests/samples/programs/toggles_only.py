"""PEFT multi-adapter: loads two, compiles, then toggles; no hot swap in the file."""
import torch
from peft import PeftModel
model = PeftModel.from_pretrained(base, "a", adapter_name="a")
model.load_adapter("b", adapter_name="b")
model = torch.compile(model)
for name in ("a", "b"):
    model.set_adapter(name)
    model("x")
