"""Every error a user can meet, by cause; each derives from what PEFT or Python raises there too."""

from __future__ import annotations

from collections.abc import Sequence

from hotswap.findings import Finding, printable


class HotswapError(Exception):
    """The base of every error that hotswap raises on purpose."""


def _text(findings: Sequence[Finding]) -> str:
    """Findings in one line; what is to be done about several in a row is said once, after the last."""
    words: list[str] = []
    for one, after in zip(findings, [*findings[1:], None], strict=True):
        words.append(f"{one.where}: {one.message}")
        if after is None or after.remedy != one.remedy:
            words.append(one.remedy)
    return "; ".join(map(printable, words))


class AdapterError(HotswapError, ValueError):
    """An adapter was refused; ``findings`` says what is wrong with it, each with a remedy."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(_text(self.findings))


class PackageError(HotswapError, ValueError):
    """An exported model's adapters cannot be swapped; ``findings`` says why, each with a remedy."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__(_text(self.findings))


class UnreadableAdapterError(AdapterError):
    """The adapter's files are missing, damaged or in a format that is not read."""


class RankTooLargeError(AdapterError):
    """The adapter's rank is above the rank that the model was prepared for."""


class UnexpectedModulesError(AdapterError, RuntimeError):
    """The adapter targets modules that carry no LoRA layer; where PEFT's functions are stood in for."""


class MergedAdapterError(HotswapError, ValueError):
    """An adapter is merged into the base weights, where a swap cannot reach it."""


class UnsupportedLayerError(HotswapError, ValueError):
    """The model has LoRA layers that cannot be prepared; ``layers`` maps name to reason."""

    def __init__(self, layers: dict[str, str], text: str) -> None:
        self.layers = layers
        super().__init__(text)


class NoAdapterError(HotswapError, ValueError):
    """The model carries no LoRA adapter of the given name."""


class NotPreparedError(HotswapError, RuntimeError):
    """The model was not prepared before it was compiled or before a swap."""


class AlreadyCompiledError(HotswapError, ValueError):
    """prepare() was called on something that is compiled already."""


class UnknownAdapterError(HotswapError, KeyError):
    """The bank holds no adapter of the given name."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show it in quotes


class BusyError(HotswapError, TimeoutError):
    """Another thread uses or swaps the model's adapters, or this one does already."""


class RankError(HotswapError, RuntimeError):
    """Not every rank could exchange its adapter, so none has; ``rank`` is the one that could not."""

    def __init__(self, text: str, rank: int | None) -> None:
        self.rank = rank
        super().__init__(text)


class NotCompiledError(HotswapError, ValueError):
    """A question about compiled code was asked of a model that has none."""


class CannotObserveError(HotswapError, RuntimeError):
    """This torch does not offer what is needed to see recompiles."""


class MissingExtraError(HotswapError, ImportError):
    """A feature needs a package that is installed with an extra of this distribution."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.extra = extra
        self._given = (feature, package, extra)
        super().__init__(
            f"{feature} needs {package}, which is not installed; "
            f"run: pip install 'pytest-hotswap[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        """Cross from one process to another."""
        return type(self), self._given


_EXTRAS = {
    "torch": ("anyio", "huggingface_hub", "peft", "safetensors", "torch", "transformers"),
    "diffusers": ("diffusers",),
}
"""Extra → what it brings that is imported on first use."""


def missing_extra(feature: str, error: ImportError) -> MissingExtraError | None:
    """Say with which extra a package is installed whose import failed; None if with none."""
    if isinstance(error, MissingExtraError):
        return error
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, brought in _EXTRAS.items() if package in brought), None)
    return MissingExtraError(feature, package, extra) if extra else None


class RecompileError(HotswapError, AssertionError):
    """A scope that must not recompile did, or nothing compiled ran in it."""
