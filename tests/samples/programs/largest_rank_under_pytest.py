"""A test that prepares for the largest of its ranks."""
import pytest, torch
from peft import LoraConfig, get_peft_model, PeftModel
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(4, 4)
    def forward(self, x):
        return self.lin(x)

@pytest.mark.parametrize("ranks", [(8, 16), (16, 8)])
def test_swap(tmp_path, ranks):
    for i, r in enumerate(ranks):
        m = get_peft_model(MLP(), LoraConfig(r=r, target_modules=["lin"]))
        m.save_pretrained(tmp_path / f"a{i}")
    m = PeftModel.from_pretrained(MLP(), tmp_path / "a0")
    prepare_model_for_compiled_hotswap(m, target_rank=max(ranks))
    m = torch.compile(m)
    m(torch.ones(1, 4))
    hotswap_adapter(m, tmp_path / "a1", adapter_name="default")
    m(torch.ones(1, 4))
