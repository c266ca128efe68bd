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

REMEDIES: dict[str, str] = {
    "preparation-preserves": "pad with zeros only, and keep each scaling at alpha / the adapter's own rank",
    "preparation-idempotent": "let prepare() do nothing to a model that is prepared already",
    "preparation-covers": "prepare every layer that carries LoRA, or refuse the layer by its name",
    "prepare-before-compile": "call prepare() before torch.compile, and let it raise for what is compiled",
    "rank-bound": "compare an adapter's ranks with the target rank before anything is written",
    "swap-equals-load": "write the weights and the scaling of every module that the adapter targets, with "
    "its rank_pattern and alpha_pattern, and zeros into those that it leaves out",
    "swap-forgets": "fill padded rows and modules that the adapter leaves out with zeros at every swap",
    "swap-has-effect": "write into the compiled model, not into a copy, and leave the adapter enabled",
    "swap-isolated": "write to the tensors of the swapped adapter only, match its name as a whole, and leave "
    "modes, flags and settings as they are",
    "swap-atomic": "read and validate everything before the first write, and undo the writes on an error",
    "swap-in-place": "copy into the tensors that are there (copy_) instead of putting others in their place",
    "zero-recompiles": "prepare for the plan of the whole fleet before torch.compile; why it recompiled is "
    "in the table of recompiles",
    "knobs-follow": "set the config, the scaling and what is saved together with the weights, and let each "
    "knob act on every layer, before the first swap too",
    "unprepared-recompiles": "let compile() really compile, so that a recompile can be seen",
}
"""Law id → what its deployment has to do where it is broken."""

CONTROL_REMEDY = (
    "the law was not seen to break where it must, so its pass proves nothing: give adapters that differ "
    "from each other and from the base model, and let compile() really compile"
)
