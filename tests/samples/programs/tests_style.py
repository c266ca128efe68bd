"""Tests of hot-swapping: some provoke errors, some compile."""
import torch, pytest
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM

@pytest.fixture
def model():
    return get_peft_model(AutoModelForCausalLM.from_pretrained("t"), LoraConfig(r=8))

class TestHotswap:
    def prepare(self, model, rank):
        prepare_model_for_compiled_hotswap(model, target_rank=rank)
        return torch.compile(model)

    def test_a(self, model, tmp_path):
        model.save_pretrained(tmp_path / "a")
        m = self.prepare(model, 16)
        m(torch.ones(1))
        hotswap_adapter(m, tmp_path / "a", adapter_name="default")

    def test_needs_adapter(self):
        base = AutoModelForCausalLM.from_pretrained("t")
        with pytest.raises(ValueError, match="No adapter layers found"):
            prepare_model_for_compiled_hotswap(base)

    def test_smaller(self):
        m = get_peft_model(AutoModelForCausalLM.from_pretrained("t"), LoraConfig(r=8))
        err = "Trying to pad"
        with pytest.raises(ValueError, match=err):
            prepare_model_for_compiled_hotswap(m, target_rank=4)

    @pytest.mark.parametrize("do_compile", [True, False])
    def test_flag(self, do_compile):
        m = get_peft_model(AutoModelForCausalLM.from_pretrained("t"), LoraConfig(r=8))
        m.save_pretrained("x")
        if do_compile:
            prepare_model_for_compiled_hotswap(m, target_rank=16)
            m = torch.compile(m)
        m(torch.ones(1))
        hotswap_adapter(m, "x", adapter_name="default")
