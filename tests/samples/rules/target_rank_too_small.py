import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def below_the_loaded():
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=16))
    prepare_model_for_compiled_hotswap(model, target_rank=8)  # want HSW204


def below_a_later():
    get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=32)).save_pretrained("wide")
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=16)  # want HSW204
    hotswap_adapter(model, "wide", adapter_name="default")


def below_a_named():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=32)  # want HSW204
    pipe.load_lora_weights("style-r128", adapter_name="x")


def the_first_of_a_list():
    ranks = [4, 16]
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=ranks[0])  # want HSW204


def the_smallest_of_a_list():
    ranks = [4, 16]
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=min(ranks))  # want HSW204


def the_largest_of_a_list():
    ranks = [4, 16]
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=max(ranks))
    pipe.load_lora_weights("style-r16", adapter_name="x")


def the_last_of_a_sorted_list():
    ranks = [4, 16]
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=ranks[-1])


def wide_enough():
    get_peft_model(AutoModelForCausalLM.from_pretrained("base"), LoraConfig(r=32)).save_pretrained("narrow")
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=32)
    hotswap_adapter(model, "narrow", adapter_name="default")


def unknown(rank):
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=rank)
    pipe.load_lora_weights("style-r128", adapter_name="x")
