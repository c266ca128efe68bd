import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def base_only():
    base = AutoModelForCausalLM.from_pretrained("base").eval().to("cuda")
    prepare_model_for_compiled_hotswap(base, target_rank=8)  # want HSW202


def unloaded():
    model = loaded().merge_and_unload()
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW202


def of_a_caller(model):
    prepare_model_for_compiled_hotswap(model, target_rank=8)


def injected():
    model = AutoModelForCausalLM.from_pretrained("base")
    model.add_adapter(LoraConfig(r=4))
    prepare_model_for_compiled_hotswap(model, target_rank=8)


def from_an_adapter_repository():
    model = AutoModelForCausalLM.from_pretrained("me/llm-lora")
    prepare_model_for_compiled_hotswap(model, target_rank=8)


def handed_over(elsewhere):
    model = AutoModelForCausalLM.from_pretrained("base")
    elsewhere.add_adapters(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
