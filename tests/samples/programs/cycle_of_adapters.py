"""Two adapters hot-swapped into one slot by a cycle, rank of each in a helper's return."""
import itertools, torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
def ranks():
    return [4, 8, 64]
def prepared(rank=max(ranks())):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
    prepare_model_for_compiled_hotswap(model, target_rank=rank)
    return torch.compile(model)
model = prepared()
for path in itertools.islice(itertools.cycle(["b", "c"]), 4):
    hotswap_adapter(model, path, adapter_name="default")
    with torch.no_grad():
        model("x")
