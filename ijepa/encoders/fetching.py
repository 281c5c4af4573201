"""Weights of timm by name: from its caches, else fetched, or soon said to be out of reach."""

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
CONNECT_SECONDS = 4.0  # the hub's library itself tries for 23, torch for minutes
CLIENTS = ("httpx2", "httpx")  # of the hub's library, one or the other

log = logging.getLogger(__name__)


def fetched(cfg: Any) -> Path:  # noqa: ANN401  # timm's PretrainedCfg
    """The file of pretrained weights that timm names.

    Raises:
        OSError: it is not in a cache and cannot be fetched; likewise ValueError, RuntimeError.
    """
    if not cfg.hf_hub_id:
        return _from_url(str(cfg.url))
    import huggingface_hub

    quiet: Any = huggingface_hub.utils.logging.set_verbosity_error
    quiet()  # it would tell of each attempt
    try:
        return _from_hub(cfg)
    except tuple(sys.modules[name].HTTPError for name in CLIENTS if name in sys.modules) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _from_hub(cfg: Any) -> Path:  # noqa: ANN401  # timm's PretrainedCfg
    """From the cache if it is there; else safetensors before pickles, as timm does."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo, _, revision = cfg.hf_hub_id.partition("@")
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    _refuse_unreachable(huggingface_hub.constants.ENDPOINT)
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision or None))
        except LocalEntryNotFoundError:  # the network is gone
            raise
        except EntryNotFoundError:
            log.debug("%s has no %s", repo, name)
    raise FileNotFoundError(f"{repo} has no {' or '.join(names)}")


def _from_url(url: str) -> Path:
    """Where torch.hub, and timm with it, keeps a file of that address."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        _refuse_unreachable(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _refuse_unreachable(url: str) -> None:
    """One attempt to connect, unless a proxy does that for us.

    Raises:
        ConnectionError: no answer, or the user wants no network.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError("HF_HUB_OFFLINE is set")
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or (80 if place.scheme == "http" else 443)
    if place.scheme in getproxies() and not proxy_bypass(host):
        return
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"no connection to {host}") from error
