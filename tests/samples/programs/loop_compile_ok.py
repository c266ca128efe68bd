"""Every configuration gets a model of its own."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM
def bench(paths):
    for mode in ("default", "reduce-overhead"):
        net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("g"), paths[0])
        prepare_model_for_compiled_hotswap(net, target_rank=8)
        net = torch.compile(net, mode=mode)
        for p in paths[1:]:
            hotswap_adapter(net, p, adapter_name="default")
            net("x")
        torch._dynamo.reset()
