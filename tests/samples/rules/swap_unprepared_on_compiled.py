import torch
from diffusers import FluxPipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM


def loaded(name="default"):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "a", adapter_name=name)


def pipeline():
    return FluxPipeline.from_pretrained("base")


def peft(inputs):
    model = torch.compile(loaded())
    model(inputs)
    hotswap_adapter(model, "b", adapter_name="default")  # want HSW205


def diffusers():
    pipe = pipeline()
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.transformer.compile_repeated_blocks()
    pipe("x")
    pipe.load_lora_weights("b", adapter_name="x", hotswap=True)  # want HSW205


def second_adapter_is_not_prepared():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("c", adapter_name="y", hotswap=True)  # want HSW205


def first_adapter_is_prepared():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe("x")
    pipe.load_lora_weights("c", adapter_name="x", hotswap=True)


def never_compiled(inputs):
    model = loaded()
    model(inputs)
    hotswap_adapter(model, "b", adapter_name="default")


def same_shape(inputs):
    config = LoraConfig(r=4, lora_alpha=8)
    get_peft_model(AutoModelForCausalLM.from_pretrained("base"), config).save_pretrained("one")
    get_peft_model(AutoModelForCausalLM.from_pretrained("base"), config).save_pretrained("two")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "one")
    model = torch.compile(model)
    model(inputs)
    hotswap_adapter(model, "two", adapter_name="default")


def prepared_on_one_path(flag, inputs):
    model = loaded()
    if flag:
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    model = torch.compile(model)
    model(inputs)
    hotswap_adapter(model, "b", adapter_name="default")


def of_a_caller(model):
    model = torch.compile(model)
    hotswap_adapter(model, "b", adapter_name="default")  # want HSW292
