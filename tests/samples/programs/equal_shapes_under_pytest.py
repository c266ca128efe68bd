"""A test with adapters of one rank and alpha: nothing to prepare."""
import torch
from peft import LoraConfig, get_peft_model, PeftModel
from peft.utils.hotswap import hotswap_adapter

def test_same_rank_no_recompile(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        cfg = LoraConfig(r=8, lora_alpha=8, target_modules=["lin"])
        return get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), cfg)
    make(0).save_pretrained(str(tmp_path / "a"))
    make(1).save_pretrained(str(tmp_path / "b"))
    m = PeftModel.from_pretrained(torch.nn.Sequential(torch.nn.Linear(4, 4)), str(tmp_path / "a"))
    m = torch.compile(m)
    m(torch.ones(1, 4))
    hotswap_adapter(m, str(tmp_path / "b"), adapter_name="default")
    m(torch.ones(1, 4))
