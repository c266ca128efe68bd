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
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe("x")
    return pipe


def activated():
    pipe = ready()
    pipe.set_adapters("x")  # want HSW212
    pipe("x")


def disabled():
    pipe = ready()
    pipe.disable_lora()  # want HSW212
    pipe("x")


def deleted():
    pipe = ready()
    pipe.delete_adapters("y")  # want HSW212
    pipe("x")


def in_peft(inputs):
    model = loaded()
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    model = torch.compile(model)
    model(inputs)
    with model.disable_adapter():  # want HSW212
        model(inputs)


def never_compiled():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe("x")
    pipe.set_adapters("y")
    pipe("x")


def before_the_first_run():
    pipe = pipeline()
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights("a", adapter_name="x")
    pipe.load_lora_weights("b", adapter_name="y")
    pipe.transformer.compile()
    pipe.set_adapters("y")
    pipe("x")


def the_last_loaded_is_active():
    pipe = ready()
    pipe.set_adapters("y")
    pipe("x")
