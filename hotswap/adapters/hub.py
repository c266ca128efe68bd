"""Adapters on the hub, through huggingface_hub's own calls: the config, and of the weights the header."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Collection
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from hotswap.adapters.config import CONFIG
from hotswap.adapters.files import (
    ALLOW_PICKLE,
    DIFFUSERS_PICKLE,
    DIFFUSERS_WEIGHTS,
    PICKLE,
    PICKLED,
    WEIGHTS,
    damaged,
    unreadable,
)
from hotswap.errors import UnreadableAdapterError

_MALFORMED = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What huggingface_hub raises for a header that is JSON of another form."""
_PATIENCE = 2.0  # seconds
_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_WORD = re.compile(rf"(?P<id>{_ID})(@(?P<revision>[\w./-]+))?")
_WITH_FILE = re.compile(rf"(?P<id>{_ID})/(?P<file>[\w./ -]+\.(safetensors|bin))")
_PAGE = re.compile(rf"/(?P<id>{_ID})(/(tree|blob|resolve)/(?P<revision>[^/]+)(/(?P<file>.+?))?)?/?")


class Place(NamedTuple):
    """Where an adapter is on the hub; ``folder`` ends with a slash, ``file`` is "" where none is named."""

    repository: str
    revision: str | None = None
    folder: str = ""
    file: str = ""


def place_of(word: str) -> Place | None:
    """Where a word is on the hub: an id, an id with a revision or a file, a page's address; else None.

    What begins with a folder that is here is a path.
    """
    if word.startswith(("https://", "http://")):
        address = urlsplit(word)
        found = _PAGE.fullmatch(unquote(address.path))
    else:
        found = _WORD.fullmatch(word) or _WITH_FILE.fullmatch(word)
        if Path(word).exists() or Path(word.partition("/")[0]).is_dir():
            return None
    if found is None:
        return None
    named = found.groupdict()
    file = named.get("file") or ""
    if file.endswith((".safetensors", ".bin")):
        folder, slash, file = file.rpartition("/")
        return Place(named["id"], named.get("revision"), folder + slash, file)
    folder = f"{file.strip('/')}/" if file else ""
    return Place(named["id"], named.get("revision"), folder)


def looks_like_id(path: str) -> bool:
    """Tell whether a word is a place on the hub, and no path that exists or could."""
    return place_of(path) is not None


def read_texts(word: str) -> tuple[bytes | None, bytes, int]:
    """Get the config (None where there is none), the header and the size of the data behind it.

    The weights are not downloaded. The endpoint is ``HF_ENDPOINT``. Raises UnreadableAdapterError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    place = _placed(word)
    api, revision = HfApi(), place.revision
    config, weights = _files(word, place, _listed(word, place))
    try:
        text = None
        if config:
            local = api.hf_hub_download(place.repository, config, revision=revision)
            text = Path(local).read_bytes()
        told = api.parse_safetensors_file_metadata(place.repository, weights, revision=revision)
        entries = {name: asdict(info) for name, info in told.tensors.items()}
        size = max([info.data_offsets[1] for info in told.tensors.values()], default=0)
        header = json.dumps({"__metadata__": dict(told.metadata), **entries})
    except (SafetensorsParsingError, *_MALFORMED) as error:
        raise damaged(word, f"the weights: {_first(error)}", "upload it again") from error
    except Exception as error:  # of the library below huggingface_hub: no connection
        raise not_to_be_had(word, error) from error
    return text, header.encode(), size


def cache_only() -> bool:
    """Whether only the cache of huggingface_hub is read: told so, or its endpoint does not answer."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or _unreachable() is not None


def fetched(word: str, *, allow_pickle: bool = False, **options: Any) -> Path:
    """Fetch an adapter, and return its folder or, where it stands alone, its file.

    ``options`` are huggingface_hub's; with ``allow_pickle`` it may be one of torch.save. Raises
    UnreadableAdapterError.
    """
    options = dict(options)
    place = _placed(word)._replace(**_own(options))
    if cache_only() or options.get("local_files_only"):
        return _cached(word, place, options, allow_pickle=allow_pickle)
    names = _listed(word, place, options.get("token"))
    config, weights = _files(word, place, names, allow_pickle=allow_pickle)
    found = _download(word, place, weights, options)
    if config:
        _download(word, place, config, options)
    return found if place.file or not config else found.parent


def _cached(word: str, place: Place, options: dict[str, Any], *, allow_pickle: bool) -> Path:
    """The same from the cache, in which nothing can be listed, and without asking anybody for anything."""
    from huggingface_hub import try_to_load_from_cache

    def inside(name: str) -> Path | None:
        found = try_to_load_from_cache(
            place.repository,
            place.folder + name,
            cache_dir=options.get("cache_dir"),
            revision=place.revision,
        )
        return Path(found) if isinstance(found, str) else None

    usual = (WEIGHTS, DIFFUSERS_WEIGHTS, PICKLE, DIFFUSERS_PICKLE)
    for name in (place.file,) if place.file else usual:
        weights = inside(name)
        if weights is not None and name in (WEIGHTS, PICKLE):
            weights = weights.parent if inside(CONFIG) else None
        if weights is not None and name.endswith(".bin") and not allow_pickle:
            raise unreadable(word, "HSW006", PICKLED, ALLOW_PICKLE)
        if weights is not None:
            return weights
    raise not_to_be_had(word, _unreachable() or OSError("it is not in the cache"))


def _own(options: dict[str, Any]) -> dict[str, str]:
    """Take out of huggingface_hub's options what says where an adapter is."""
    found = {}
    if revision := options.pop("revision", None):
        found["revision"] = revision
    if subfolder := options.pop("subfolder", None):
        found["folder"] = f"{subfolder.strip('/')}/"
    return found


def _download(word: str, place: Place, name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        found = hf_hub_download(place.repository, name, revision=place.revision, **options)
    except Exception as error:  # also of the library below huggingface_hub
        raise not_to_be_had(word, error) from error
    return Path(found)


def _placed(word: str) -> Place:
    place = place_of(word)
    if place is None:
        raise ValueError(f"{word!r} is no place on the hub; pass an id like 'org/name'")
    return place


def _listed(word: str, place: Place, token: Any = None) -> set[str]:
    """The names of the files of a repository, asked for once; raises UnreadableAdapterError."""
    from huggingface_hub import HfApi

    reason = _unreachable()
    if reason is not None:
        raise not_to_be_had(word, reason)
    try:
        told = HfApi(token=token).model_info(
            place.repository, revision=place.revision, timeout=5 * _PATIENCE
        )
    except Exception as error:  # also of the library below huggingface_hub
        raise not_to_be_had(word, error) from error
    return {each.rfilename for each in told.siblings or ()}


def _files(
    word: str, place: Place, names: Collection[str], *, allow_pickle: bool = False
) -> tuple[str, str]:
    """The config ("" for none) and the weights of an adapter; raises UnreadableAdapterError."""
    inside = {n.removeprefix(place.folder) for n in names if n.startswith(place.folder)}
    config = CONFIG if CONFIG in inside else ""
    weights = place.file or (WEIGHTS if config else DIFFUSERS_WEIGHTS)
    pickle = PICKLE if config else DIFFUSERS_PICKLE
    if allow_pickle and weights not in inside and pickle in inside:
        weights = pickle
    if weights not in inside or (weights.endswith(".bin") and not allow_pickle):
        raise _absent(word, weights, bool(config), inside)
    return config and place.folder + config, place.folder + weights


def _absent(word: str, wanted: str, config: bool, names: set[str]) -> UnreadableAdapterError:
    if wanted in names or (PICKLE if config else DIFFUSERS_PICKLE) in names:
        return unreadable(word, "HSW006", PICKLED, ALLOW_PICKLE)
    others = sorted(name for name in names if name.endswith(".safetensors"))
    where = "in the repository" + (f", which has {', '.join(others[:5])}" if others else "")
    remedy = f"pass {word.rstrip('/')}/{others[0]}" if others else "pass the id of an adapter"
    if config or wanted != DIFFUSERS_WEIGHTS:
        return unreadable(word, "HSW004", f"no {wanted} {where}", remedy)
    text = f"neither {CONFIG} nor {DIFFUSERS_WEIGHTS} {where}"
    return unreadable(word, "HSW002", text, remedy)


def _unreachable() -> OSError | None:
    """Why the endpoint does not answer, told soon instead of trying again and again; None: it does."""
    from huggingface_hub import constants

    address, proxies = urlsplit(constants.ENDPOINT), getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all") or ""
    if proxy and proxy_bypass(address.hostname or ""):
        proxy = ""
    return _connection(constants.ENDPOINT, proxy, int(time.monotonic() // 60))


@lru_cache(maxsize=4)
def _connection(endpoint: str, proxy: str, minute: int) -> OSError | None:
    """What a connection fails with, through a proxy where there is one; asked anew each minute."""
    del minute
    hub = urlsplit(endpoint)
    first = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else hub
    if not hub.hostname or not first.hostname:
        return None
    port = first.port or {"http": 80}.get(first.scheme, 443)
    try:
        with socket.create_connection((first.hostname, port), timeout=_PATIENCE) as connection:
            if proxy and first.scheme == "http" and hub.scheme == "https":
                _pass(connection, hub, first)
    except OSError as error:
        return error
    return None


def _pass(connection: socket.socket, hub: SplitResult, proxy: SplitResult) -> None:
    """Ask a proxy for the hub; raises OSError where it does not answer, or cannot reach it."""
    asked = f"CONNECT {hub.hostname}:{hub.port or 443} HTTP/1.1\r\nHost: {hub.hostname}\r\n"
    if proxy.username:
        secret = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        asked += f"Proxy-Authorization: Basic {base64.b64encode(secret).decode()}\r\n"
    connection.sendall(f"{asked}\r\n".encode())
    answer = connection.recv(64).split(maxsplit=2)
    if len(answer) < 2 or answer[1][:1] == b"5":
        text = b" ".join(answer[1:2]).decode("ascii", "replace") or "nothing"
        raise OSError(f"the proxy {proxy.hostname} answers {text}")


def not_to_be_had(adapter: str, error: Exception) -> UnreadableAdapterError:
    """The error for a word that is no path, and that the hub gives no adapter for (HSW001)."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    remedy = f"pass a folder with {CONFIG}, or the id of a public repository"
    if status in (401, 403):
        text = f"the hub gives no access ({status}): it is private or gated, or not there"
        remedy = "check the id, and set HF_TOKEN to a token of an account that has access"
    elif status == 429:
        text, remedy = "the hub was asked too often (429)", "wait, or set HF_TOKEN"
    elif isinstance(status, int) and status >= 500:
        text, remedy = f"the hub itself fails ({status})", "try again later"
    else:
        text = f"is no folder or file here, and not to be had from the hub: {_first(error)}"
    return unreadable(adapter, "HSW001", text, remedy)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
