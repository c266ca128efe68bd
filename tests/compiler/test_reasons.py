"""torch's texts of failed guards, as it prints them, become a cause, a sentence and a remedy."""

from __future__ import annotations

import pytest

from hotswap.compiler.reasons import Reason, group
from hotswap.compiler.rules import Guarded, explain

LORA = (
    "self.__dict__['_modules']['base_model'].__dict__['_modules']['model']._modules['up']."
    "_modules['lora_A']._modules['default']._parameters['weight']"
)
TEXTS = {
    f"0/0: expected type of '{LORA}' to be a tensor type, ' but found <class 'torch.Tensor'>": (
        "swap",
        "up: an adapter of a larger rank came in",
    ),
    f"0/1: tensor '{LORA}' size mismatch at index 0. expected 8, actual 12": (
        "swap",
        "up: the rank changed from 8 to 12",
    ),
    f"tensor '{LORA}' dtype mismatch. expected Float, actual BFloat16": (
        "swap",
        "up: the adapter's dtype changed from Float to BFloat16",
    ),
    "0/0: self._modules['up'].scaling['default'] == 2.0   # scaling = self.scaling[name]": (
        "swap",
        "up: the scaling alpha / rank = 2.0",
    ),
    "self._modules['attn'].scaling == 0.5": ("swap", "attn: the model's attribute scaling was 0.5"),
    "len(self._modules['up']._modules['lora_A']._modules) != 1": (
        "swap",
        "up: an adapter was added",
    ),
    "self._modules['self_attn'].layer_idx == 1": ("other model", "specialised on layer_idx"),
    "kwargs['past_key_values'].layers[0].is_initialized == False": ("input", "the KV cache"),
    "GLOBAL_STATE changed: grad_mode ": ("environment", "gradients were on"),
    "GLOBAL_STATE changed: deterministic_algorithms ": (
        "environment",
        "(deterministic_algorithms)",
    ),
    "tensor 'x' size mismatch at index 1. expected 2, actual 3": (
        "input",
        "dimension 1 from 2 to 3",
    ),
    "2 <= x.size()[0]": ("input", "0 and 1 are always special"),
    "tensor 'x' dispatch key set mismatch. expected DispatchKeySet(CPU, AutogradCPU), actual "
    "DispatchKeySet(CPU)": ("environment", "torch.inference_mode()"),
    "tensor 'x' dispatch key set mismatch. expected DispatchKeySet(CPU, ADInplaceOrView), actual "
    "DispatchKeySet(CPU)": ("input", "made inside torch.inference_mode()"),
    "x is None": ("input", "the argument x was None at warm-up"),
    "BACKEND_MATCH failure: torch.compile detected different backend callables.": (
        "environment",
        "another backend object",
    ),
}


@pytest.mark.parametrize("raw", TEXTS)
def test_a_text_is_understood(raw: str) -> None:
    cause, says = TEXTS[raw]
    reason = explain(Guarded.guess(raw))
    assert reason.cause == cause
    assert says in str(reason)
    assert reason.remedy


def test_what_is_not_understood_is_quoted() -> None:
    reason = explain(Guarded("___some_new_guard(3)", None))
    assert reason.cause == "unknown"
    assert str(reason) == "a guard failed: ___some_new_guard(3)"


def test_the_same_reason_of_many_modules_is_said_once_and_the_worst_first() -> None:
    reasons = [Reason("input", "a shape changed", "warm up", raw=("i",))]
    reasons += [
        Reason("swap", "it changed", "do this", (f"layers.{n}",), (str(n),)) for n in (10, 9, 2)
    ]
    first, second = group(reasons)
    assert str(first) == "layers.2, layers.9 and 1 more: it changed; do this"
    assert first.raw == ("10", "9", "2")
    assert second.cause == "input"
