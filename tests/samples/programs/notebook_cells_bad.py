# %%
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModel
# %%
RANKS = dict(law=8, med=16, code=64)
model = get_peft_model(AutoModel.from_pretrained("bert"), LoraConfig(r=RANKS["law"]))
# %%
prepare_model_for_compiled_hotswap(model, target_rank=RANKS["med"])  # want HSW204
compiled = torch.compile(model)
# %%
big = get_peft_model(AutoModel.from_pretrained("bert"), LoraConfig(r=RANKS["code"]))
big.save_pretrained("out/code")
hotswap_adapter(compiled, "out/code", adapter_name="default")
