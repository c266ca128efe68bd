import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def in_diffusers():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y", hotswap=True)  # want HSW208


def made_up_name():
    pipe = pipeline()
    pipe.load_lora_weights("a")
    pipe.load_lora_weights("b", adapter_name="default", hotswap=True)  # want HSW208


def in_peft():
    model = loaded("x")
    hotswap_adapter(model, "b", "default")  # want HSW208


def by_position():
    model = loaded("x")
    hotswap_adapter(model, "b", "x")


def one_of_two():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.load_lora_weights("c", adapter_name="y", hotswap=True)


def loaded_under_a_name_of_the_caller(name):
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name=name)
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)


def of_a_caller(pipe):
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y", hotswap=True)
