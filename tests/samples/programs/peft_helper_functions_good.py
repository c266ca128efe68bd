"""The helpers in the right order."""
import torch
from peft import AutoPeftModelForCausalLM
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap


def load(path):
    return AutoPeftModelForCausalLM.from_pretrained(path, torch_dtype="auto").eval()


def speed_up(model, enabled=True):
    return torch.compile(model, fullgraph=True) if enabled else model


def ready_for_swaps(model, rank):
    prepare_model_for_compiled_hotswap(model, target_rank=rank)
    return model


def main():
    model = speed_up(ready_for_swaps(load("adapters/a"), 64))
    for path in ("adapters/b", "adapters/c"):
        hotswap_adapter(model, path, "default")
        model(torch.ones(1, 8, dtype=torch.long))


main()
