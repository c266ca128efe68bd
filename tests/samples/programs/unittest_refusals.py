"""Unit tests with unittest: a deliberate mistake as a context, one in a callable."""
import unittest, torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
class T(unittest.TestCase):
    def setUp(self):
        self.model = get_peft_model(tiny(), LoraConfig(r=4))
    def test_compiled(self):
        compiled = torch.compile(self.model)
        self.assertRaises(ValueError, prepare_model_for_compiled_hotswap, compiled, target_rank=8)
    def test_in_place(self):
        self.model.compile()
        with self.assertRaisesRegex(ValueError, "compiled"):
            prepare_model_for_compiled_hotswap(self.model, target_rank=8)
    def test_ok(self):
        prepare_model_for_compiled_hotswap(self.model, target_rank=8)
        torch.compile(self.model)
