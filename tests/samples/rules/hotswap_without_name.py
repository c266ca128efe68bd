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
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", hotswap=True)  # want HSW207


def of_a_caller(pipe):
    pipe.load_lora_weights("b", hotswap=True)  # want HSW207


def none_for_a_name(pipe):
    pipe.load_lora_weights("b", hotswap=True, adapter_name=None)  # want HSW207


def in_peft():
    hotswap_adapter(loaded(), "b")  # want HSW207


def named(pipe):
    pipe.load_lora_weights("b", hotswap=True, adapter_name="x")


def named_by_the_caller(pipe, **options):
    pipe.load_lora_weights("b", hotswap=True, **options)


def off(pipe):
    pipe.load_lora_weights("b", hotswap=False)


def on_some_turns(pipe, paths):
    for index, path in enumerate(paths):
        pipe.load_lora_weights(path, adapter_name="x", hotswap=index > 0)
