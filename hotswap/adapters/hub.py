"""Adapters on the hub, through huggingface_hub's own calls: the config, and of the weights the header."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import DIFFUSERS_WEIGHTS, PICKLE, PICKLED, WEIGHTS, damaged, unreadable
from hotswap.errors import UnreadableAdapterError

_MALFORMED = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What huggingface_hub raises for a header that is JSON of another form."""
_PATIENCE = 2.0  # seconds
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def looks_like_id(path: str) -> bool:
    """Tell whether a word is ``org/name`` and no path that exists."""
    return _ID.fullmatch(path) is not None and not Path(path).exists()


def read_texts(repository: str) -> tuple[bytes | None, bytes, int]:
    """Get the config (None where there is none), the header and the size of the data behind it.

    The weights are not downloaded. The endpoint is ``HF_ENDPOINT``. Raises UnreadableAdapterError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        SafetensorsParsingError,
    )

    _require_reachable(repository)
    api = HfApi()
    try:
        names = set(api.list_repo_files(repository))
        config = None
        if CONFIG in names:
            config = Path(api.hf_hub_download(repository, CONFIG)).read_bytes()
        weights = DIFFUSERS_WEIGHTS if config is None else WEIGHTS
        if weights not in names:
            raise _absent(repository, names)
        told = api.parse_safetensors_file_metadata(repository, weights)
        entries = {name: asdict(info) for name, info in told.tensors.items()}
        size = max([info.data_offsets[1] for info in told.tensors.values()], default=0)
        header = json.dumps({"__metadata__": dict(told.metadata), **entries})
    except UnreadableAdapterError:
        raise
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        raise not_to_be_had(repository, error) from error
    except (SafetensorsParsingError, *_MALFORMED) as error:
        raise damaged(repository, f"the weights: {_first(error)}", "upload it again") from error
    except Exception as error:  # of the library below huggingface_hub: no connection
        raise not_to_be_had(repository, error) from error
    return config, header.encode(), size


def _require_reachable(repository: str) -> None:
    """Raise UnreadableAdapterError (HSW001) soon where nobody answers, instead of trying again and again."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if getproxies() or not address.hostname:
        return
    try:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        socket.create_connection((address.hostname, port), timeout=_PATIENCE).close()
    except OSError as error:
        raise not_to_be_had(repository, error) from error


def offline() -> bool:
    """Whether huggingface_hub is told to read its cache only."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached(repository: str) -> Path:
    """The folder of an adapter in huggingface_hub's cache; raises UnreadableAdapterError (HSW001)."""
    try:
        return fetch(repository, (CONFIG, WEIGHTS))
    except UnreadableAdapterError:
        return fetch(repository, (DIFFUSERS_WEIGHTS,))


def fetched(repository: str) -> Path:
    """Fetch the weights of an adapter that stand alone in a repository; raises UnreadableAdapterError."""
    return fetch(repository, (DIFFUSERS_WEIGHTS,)) / DIFFUSERS_WEIGHTS


def fetch(repository: str, files: Sequence[str], **options: Any) -> Path:
    """Fetch files of a repository and return their folder; ``options`` are huggingface_hub's.

    Raises UnreadableAdapterError (HSW001).
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = [hf_hub_download(repository, name, **options) for name in files]
    except (HFValidationError, OSError) as error:
        raise not_to_be_had(repository, error) from error
    return Path(found[0]).parent


def not_to_be_had(adapter: str, error: Exception) -> UnreadableAdapterError:
    """The error for a word that is no path, and that the hub has no adapter for (HSW001)."""
    text = f"is no folder or file here, and not to be had from the hub: {_first(error)}"
    remedy = f"pass a folder with {CONFIG}, or the id of a public repository"
    return unreadable(adapter, "HSW001", text, remedy)


def _absent(repository: str, names: set[str]) -> UnreadableAdapterError:
    if PICKLE in names:
        return unreadable(repository, "HSW006", PICKLED, "upload safetensors in its place")
    if CONFIG in names:
        return unreadable(repository, "HSW004", f"no {WEIGHTS} in the repository", "upload it")
    text = f"neither {CONFIG} nor {DIFFUSERS_WEIGHTS} in the repository"
    return unreadable(repository, "HSW002", text, "pass the id of an adapter")


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
