"""transformers' own adapters, the order of its documentation."""
import torch
from transformers import AutoModelForSeq2SeqLM
def load(paths, max_rank):
    model = AutoModelForSeq2SeqLM.from_pretrained("t5")
    model.enable_peft_hotswap(target_rank=max_rank)
    model.load_adapter(paths[0], adapter_name="default")
    model = torch.compile(model)
    for path in paths[1:]:
        model.load_adapter(path, adapter_name="default")
        with torch.inference_mode():
            yield model(torch.ones(1, 2))
