"""TensorParallelSubject: hotswap's own engine on a model that is cut over several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_hotswap.subjects.base import usage_error
from pytest_hotswap.subjects.reference import ReferenceSubject


class TensorParallelSubject(ReferenceSubject):
    """A model that transformers cuts over ``ranks`` processes of this machine: gloo, or nccl on GPUs.

    HotswapContract starts the processes, makes this subject in each of them, and judges every law there:
    its methods run on all ranks at once. ``base_model()`` is the whole model, for the oracle. For another
    way of cutting override ``sharded()``, or ``load()`` where the adapter is cut by itself.
    """

    ranks: int = 2
    patience: float = 120.0
    """Seconds without any progress after which a rank is given up."""

    def sharded(self) -> Any:
        """A fresh base model of which this rank has its part."""
        import torch.distributed as dist
        import transformers
        from transformers.distributed import DistributedConfig

        if not (dist.is_available() and dist.is_initialized()):
            raise usage_error(
                f"{type(self).__name__} is loaded on a rank, which HotswapContract starts; it cannot be "
                "brought up in this process"
            )
        if self.base is None:
            raise usage_error(
                f"{type(self).__name__} has no base model; set `base`, or define sharded()"
            )
        config = transformers.AutoConfig.from_pretrained(self.base)
        cls = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel)
        cut = DistributedConfig(tp_size=self.ranks)
        return cls.from_pretrained(self.base, distributed_config=cut).eval()

    def load(self, base: Any, adapter: Path) -> Any:
        """Load the adapter into a model that is cut; the whole one is left alone."""
        import hotswap
        from hotswap.engine.layout.sharding import why_not_loaded
        from hotswap.engine.layout.unsupported import refusal

        sharded = self.sharded()
        plan = self.plan or hotswap.plan(self.adapter_paths())
        if why := why_not_loaded(
            sharded, plan
        ):  # PEFT would fail without a name, on some of the ranks
            raise refusal(why)
        return super().load(sharded, adapter)
