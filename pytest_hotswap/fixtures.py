"""What the plugin's fixtures hand out; torch and peft are imported inside functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hotswap.subjects.origin import subject_at_run
from pytest_hotswap.subjects.protocol import missing
from pytest_hotswap.subjects.tensor_parallel import TensorParallelSubject

if TYPE_CHECKING:
    from torch import nn

    from pytest_hotswap.contract.deployment import Broken, Deployment
    from pytest_hotswap.ranks.controller import OverRanks


def bring_up(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory
) -> Iterator[Deployment | OverRanks | Broken]:
    """Build the deployment of a contract class between two resets of Dynamo; call it once.

    What keeps it from that is one sentence, not one a law: a Broken is yielded then. One over several
    ranks is in processes of its own.
    """
    subject = subject_at_run(request.cls, request)
    if lacking := missing(subject):
        pytest.fail(
            f"{type(subject).__name__} has no {', '.join(lacking)}; derive it from pytest_hotswap.Subject, "
            "or see pytest_hotswap.SubjectProtocol",
            pytrace=False,
        )
    folder = factory.mktemp("hotswap")
    if isinstance(subject, TensorParallelSubject):
        from pytest_hotswap.ranks.controller import OverRanks

        yield from OverRanks.brought_up(subject, folder, request.config)
        return
    import torch

    from pytest_hotswap.contract.bring_up import deploy
    from pytest_hotswap.contract.deployment import Deployment

    torch._dynamo.reset()
    deployment = deploy(subject, lambda: Deployment(subject, folder))
    yield deployment
    if isinstance(deployment, Deployment):
        deployment.close()


class AdapterFactory:
    """Makes adapter folders for a base model; what is made depends on the arguments only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        model: nn.Module,
        *,
        rank: int = 4,
        alpha: float = 8,
        target_modules: str | Sequence[str] = "all-linear",
        seed: int = 0,
        name: str | None = None,
        **config: Any,
    ) -> Path:
        """Save a PEFT adapter with random weights for ``model``, which is left as it was.

        ``config`` goes to peft.LoraConfig. The folder's name is ``name``, or counts up.
        """
        import copy

        import torch
        from peft import LoraConfig, get_peft_model

        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        lora_alpha: Any = alpha  # PEFT says int, and divides
        lora = LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=targets, **config)
        adapted = get_peft_model(copy.deepcopy(model), lora)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    values = torch.randn(weight.shape, generator=generator)
                    weight.copy_(values * (weight[0].numel() ** -0.5))
        folder = self.folder / (name or f"adapter-{len(list(self.folder.iterdir()))}")
        if folder.exists():
            raise FileExistsError(f"an adapter named {folder.name!r} was made already: {folder}")
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        return folder
