"""hotswap's own functions through a module alias and a bank."""
import torch
import hotswap as hs
from transformers import AutoModelForCausalLM
plan = hs.plan(["a", "b", "c"])
model = hs.load(AutoModelForCausalLM.from_pretrained("g"), plan, "a")
compiled = torch.compile(model)
bank = hs.AdapterBank(compiled)
for name in ("b", "c"):
    bank.add(name, name)
with bank.using("b"):
    compiled("x")
hs.swap(compiled, "c")
hs.set_scale(compiled, 0.5)
