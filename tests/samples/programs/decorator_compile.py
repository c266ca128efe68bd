"""torch.compile decorates a step function; the model inside swaps prepared."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "a")
prepare_model_for_compiled_hotswap(model, target_rank=16)
@torch.compile
def step(ids):
    return model(ids).logits.argmax(-1)
for path in ("a", "b"):
    hotswap_adapter(model, path, adapter_name="default")
    step(torch.ones(1, 1, dtype=torch.long))
