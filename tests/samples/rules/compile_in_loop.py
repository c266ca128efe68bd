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
    return model


def every_turn(paths, inputs):
    model = ready()
    for path in paths:
        hotswap_adapter(model, path, adapter_name="default")
        model = torch.compile(model)  # want HSW215
        model(inputs)


def another_time(inputs):
    model = torch.compile(ready())
    model = torch.compile(model, mode="reduce-overhead")  # want HSW215
    model(inputs)


def in_place_and_wrapped(inputs):
    model = ready()
    model.compile()
    model = torch.compile(model)
    model(inputs)


def first_turn(paths, inputs):
    model = ready()
    for index, path in enumerate(paths):
        hotswap_adapter(model, path, adapter_name="default")
        if index == 0:
            model = torch.compile(model)
        model(inputs)


def before(paths, inputs):
    model = torch.compile(ready())
    for path in paths:
        hotswap_adapter(model, path, adapter_name="default")
        model(inputs)


def a_new_model_every_turn(paths, inputs):
    for path in paths:
        model = torch.compile(ready())
        hotswap_adapter(model, path, adapter_name="default")
        model(inputs)
