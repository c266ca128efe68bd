"""A test of recompilation with the error stance: enabled, loaded, compiled, swapped."""
import torch, pytest
from diffusers import StableDiffusionPipeline
@pytest.mark.parametrize("ranks", [(7, 13), (13, 7)])
def test_hotswap(ranks, tmp_path):
    with torch._dynamo.config.patch(error_on_recompile=True):
        pipe = StableDiffusionPipeline.from_pretrained("tiny")
        pipe.enable_lora_hotswap(target_rank=max(ranks))
        pipe.load_lora_weights(tmp_path / "0", adapter_name="default")
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead")
        for _ in range(3):
            pipe("x")
        pipe.load_lora_weights(tmp_path / "1", adapter_name="default", hotswap=True)
        for _ in range(3):
            pipe("x")
def test_enable_after_load_raises(tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    pipe.load_lora_weights(tmp_path / "0")
    with pytest.raises(RuntimeError, match="before loading"):
        pipe.enable_lora_hotswap(target_rank=8)
def test_warns(tmp_path, caplog):
    pipe = StableDiffusionPipeline.from_pretrained("tiny")
    pipe.load_lora_weights(tmp_path / "0")
    pipe.enable_lora_hotswap(target_rank=8, check_compiled="warn")
    assert "before loading" in caplog.text
