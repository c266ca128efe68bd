"""transformers' own adapters: enabled on what PeftModel returned."""
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM
def load(paths, max_rank):
    model = AutoModelForSeq2SeqLM.from_pretrained("t5")
    model = PeftModel.from_pretrained(model, paths[0])
    model.enable_peft_hotswap(target_rank=max_rank)  # want HSW213
    return torch.compile(model)
