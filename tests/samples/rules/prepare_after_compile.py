import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def wrapper():
    model = torch.compile(loaded())
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def in_place():
    model = loaded()
    model.compile(mode="max-autotune")
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def inner():
    model = loaded()
    model.base_model.model = torch.compile(model.base_model.model)
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def wrapped_base():
    model = PeftModel.from_pretrained(torch.compile(AutoModelForCausalLM.from_pretrained("base")), "a")
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def partial_compile():
    speed_up = torch.compile(mode="reduce-overhead")
    model = speed_up(loaded())
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def forward_that_ran(inputs):
    model = loaded()
    model.forward = torch.compile(model.forward)
    model(inputs)
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def blocks_that_ran(inputs):
    model = loaded()
    for layer in model.base_model.model.model.layers:
        layer.compile()
    model(inputs)
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def parameter(model):
    model = torch.compile(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW201


def diffusers_in_place():
    pipe = pipeline()
    pipe.transformer.compile()
    pipe.enable_lora_hotswap(target_rank=8)  # want HSW201
    pipe.load_lora_weights("a", adapter_name="x")


def component():
    transformer = pipeline().transformer
    transformer.enable_lora_hotswap(target_rank=8)
    transformer.compile()
    transformer.load_lora_adapter("a", adapter_name="x")  # want HSW201


def in_order():
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    return torch.compile(model)


def forward_that_did_not_run(inputs):
    model = loaded()
    model.forward = torch.compile(model.forward)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    model(inputs)


def opted_out(how):
    model = torch.compile(loaded())
    prepare_model_for_compiled_hotswap(model, target_rank=8, check_compiled="warn")
    prepare_model_for_compiled_hotswap(model, target_rank=8, check_compiled=how)


def disabled():
    model = torch.compile(loaded(), disable=True)
    prepare_model_for_compiled_hotswap(model, target_rank=8)


def a_vae():
    pipe = pipeline()
    pipe.vae = torch.compile(pipe.vae)
    pipe("x")
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
