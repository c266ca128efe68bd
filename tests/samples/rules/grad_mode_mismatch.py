import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def ready():
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    return torch.compile(model)


def main(inputs):
    model = ready()
    with torch.no_grad():
        model(inputs)
    hotswap_adapter(model, "b", adapter_name="default")
    with torch.inference_mode():
        model(inputs)  # want HSW214


@torch.no_grad()
def warm_up(model, inputs):
    model(inputs)


def script(inputs):
    model = ready()
    warm_up(model, inputs)
    with torch.enable_grad():
        model(inputs)  # want HSW214


def the_same(inputs):
    model = ready()
    warm_up(model, inputs)
    with torch.no_grad():
        model(inputs)


def generated(inputs):
    model = ready()
    warm_up(model, inputs)
    model.generate(inputs)


def never_swapped(inputs):
    model = torch.compile(loaded())
    warm_up(model, inputs)
    model(inputs)
