# %% [markdown]
# # Swapping
# %%
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModel
# %%
ranks = {"law": 8, "med": 16, "code": 64}
base = AutoModel.from_pretrained("bert")
model = get_peft_model(base, LoraConfig(r=ranks["law"], lora_alpha=16))
# %%
prepare_model_for_compiled_hotswap(model, target_rank=max(ranks.values()))
compiled = torch.compile(model)
# %%
for name in ranks:
    hotswap_adapter(compiled, f"adapters/{name}", adapter_name="default")
    with torch.no_grad():
        compiled(torch.ones(1, 3, dtype=torch.long))
