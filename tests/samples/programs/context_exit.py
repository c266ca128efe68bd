"""ExitStack and a context manager of its own around the swap."""
import contextlib, torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
@contextlib.contextmanager
def adapter(model, path, back):
    hotswap_adapter(model, path, "default")
    try:
        yield model
    finally:
        hotswap_adapter(model, back, "default")
def run(path):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), "home")
    prepare_model_for_compiled_hotswap(model, target_rank=32)
    model = torch.compile(model)
    with adapter(model, path, "home") as m, torch.no_grad():
        return m("x")
