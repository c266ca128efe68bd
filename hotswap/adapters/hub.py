"""Adapters on the hub, through huggingface_hub's own calls: the config, and of the weights the header."""

from __future__ import annotations

import re
from pathlib import Path

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import PICKLE, WEIGHTS
from hotswap.adapters.formats.diffusers import WEIGHTS as DIFFUSERS_WEIGHTS
from hotswap.adapters.header import FileLayout, layout_of
from hotswap.errors import UnreadableAdapterError
from hotswap.findings import Finding

_MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What huggingface_hub raises for a header that is JSON of another form."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_id(path: str) -> bool:
    """Tell whether a word is ``org/name`` and no path that exists."""
    return _ID.fullmatch(path) is not None and not Path(path).exists()


def read_texts(repository: str) -> tuple[bytes | None, FileLayout]:
    """Get the config (None for an adapter of diffusers) and the header of an adapter on the hub.

    The weights are not downloaded. The endpoint is ``HF_ENDPOINT``. Raises UnreadableAdapterError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        SafetensorsParsingError,
    )

    api = HfApi()
    try:
        names = set(api.list_repo_files(repository))
        text = None
        if CONFIG in names:
            text = Path(api.hf_hub_download(repository, CONFIG)).read_bytes()
        weights = WEIGHTS if text is not None else DIFFUSERS_WEIGHTS
        if weights not in names:
            raise _absent(repository, names, text is not None)
        header = api.parse_safetensors_file_metadata(repository, weights)
    except UnreadableAdapterError:
        raise
    except (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OSError,
    ) as error:
        text_ = f"is neither a folder nor to be had from the hub: {_first(error)}"
        remedy = f"pass a folder with {CONFIG}, or the id of a public repository"
        raise _refused(repository, "HSW001", text_, remedy) from error
    except (SafetensorsParsingError, *_MALFORMED) as error:
        raise _refused(
            repository, "HSW005", f"the weights: {_first(error)}", "upload it again"
        ) from error
    entries = {
        name: {
            "dtype": info.dtype,
            "shape": info.shape,
            "data_offsets": list(info.data_offsets),
        }
        for name, info in header.tensors.items()
    }
    return text, layout_of(repository, entries, dict(header.metadata))


def _absent(repository: str, names: set[str], peft: bool) -> UnreadableAdapterError:
    if PICKLE in names:
        text = "the weights are a pickle, which can run code when it is loaded and is not read"
        return _refused(repository, "HSW006", text, "upload safetensors in its place")
    if peft:
        return _refused(repository, "HSW004", f"no {WEIGHTS} in the repository", "upload it")
    text = f"neither {CONFIG} nor {DIFFUSERS_WEIGHTS} in the repository"
    return _refused(repository, "HSW002", text, "pass the id of an adapter")


def _refused(where: str, code: str, text: str, remedy: str) -> UnreadableAdapterError:
    return UnreadableAdapterError([Finding(where, code, text, remedy)])


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
