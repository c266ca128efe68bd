import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def a_peft_model():
    loaded().enable_peft_hotswap(target_rank=8)  # want HSW213


def made_here():
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=4))
    model.enable_peft_hotswap(target_rank=8)  # want HSW213


def a_transformers_model():
    model = AutoModelForCausalLM.from_pretrained("base")
    model.enable_peft_hotswap(target_rank=8)


def of_a_caller(model):
    model.enable_peft_hotswap(target_rank=8)
