"""The order is hidden in helpers: compile is called before prepare."""
import torch
from peft import AutoPeftModelForCausalLM
from peft.utils.hotswap import prepare_model_for_compiled_hotswap


def load(path):
    return AutoPeftModelForCausalLM.from_pretrained(path, torch_dtype="auto").eval()


def speed_up(model, enabled=True):
    if not enabled:
        return model
    return torch.compile(model, fullgraph=True)


def ready_for_swaps(model, rank):
    prepare_model_for_compiled_hotswap(model, target_rank=rank)  # want HSW201
    return model


def main():
    model = speed_up(load("adapters/a"))
    model = ready_for_swaps(model, 64)
    return model


main()
