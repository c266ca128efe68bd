"""Prepares the bare model before the adapter is put on."""
import torch
import peft
from peft.utils import hotswap as hs
from transformers import AutoModelForCausalLM
def build(name, adapter, target):
    net = AutoModelForCausalLM.from_pretrained(name)
    hs.prepare_model_for_compiled_hotswap(net, target_rank=target)  # want HSW202
    net = peft.PeftModel.from_pretrained(net, adapter)
    return torch.compile(net)
