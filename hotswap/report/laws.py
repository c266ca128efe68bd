"""The laws of hot-swapping, in the order in which a deployment meets them."""

from __future__ import annotations

LAWS: dict[str, str] = {
    "preparation-preserves": "prepare() leaves every output as it was, within the dtype's rounding",
    "preparation-idempotent": "preparing twice changes nothing more",
    "preparation-covers": "every LoRA tensor is at its planned rank and every scaling is a tensor",
    "prepare-before-compile": "prepare() on anything compiled is refused",
    "rank-bound": "an adapter above the target rank is refused before anything changes",
    "swap-equals-load": "after a swap the outputs equal those of the adapter freshly loaded",
    "swap-forgets": "A, B, A is bit-identical to A: no trace of B",
    "swap-has-effect": "an adapter changes the outputs; no adapter gives the base model",
    "swap-isolated": "base weights and every other adapter are bit-identical before and after",
    "swap-atomic": "a refused or failing swap leaves the model bit-identical and serving",
    "swap-in-place": "no address, shape, stride, dtype, type or requires_grad changes",
    "zero-recompiles": "no swap within the plan recompiles, and compiled code really ran",
    "knobs-follow": "after a swap, scale, disable and save speak of the new adapter",
    "unprepared-recompiles": "control: without prepare() another alpha does recompile",
}
"""Law id → statement."""
