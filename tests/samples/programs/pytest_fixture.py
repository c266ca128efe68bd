"""Fixtures build the model; tests swap."""
import pytest, torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
@pytest.fixture
def model(tiny):
    model = get_peft_model(tiny, LoraConfig(r=4, target_modules=["a"]))
    prepare_model_for_compiled_hotswap(model, target_rank=16)
    return torch.compile(model, backend="eager")
def test_swap(model, tmp_path):
    model(torch.ones(1, 4))
    hotswap_adapter(model, tmp_path, adapter_name="default")
    model(torch.ones(1, 4))
def test_unprepared_recompiles(tiny, tmp_path):
    model = torch.compile(get_peft_model(tiny, LoraConfig(r=4)))
    model(torch.ones(1, 4))
    with pytest.raises(RuntimeError):
        hotswap_adapter(model, tmp_path, adapter_name="default")
def test_prepare_refuses(tiny):
    model = torch.compile(get_peft_model(tiny, LoraConfig(r=4)))
    with pytest.raises(ValueError, match="compiled"):
        prepare_model_for_compiled_hotswap(model, target_rank=16)
