"""min where max was meant."""
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForSequenceClassification

RANKS = {"spam": 4, "tone": 16, "topic": 32}
base = AutoModelForSequenceClassification.from_pretrained("base/encoder")
model = PeftModel.from_pretrained(base, "adapters/spam")
prepare_model_for_compiled_hotswap(model, target_rank=min(RANKS.values()))  # want HSW204
model = torch.compile(model)
for task in RANKS:
    hotswap_adapter(model, f"adapters/{task}", adapter_name="default")
    model(torch.ones(1, 8, dtype=torch.long))
