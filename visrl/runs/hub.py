"""Whether the Hugging Face hub answers, asked once and briefly: its own client tries five times a file, a minute in all."""

from __future__ import annotations

import functools
import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from visrl.errors import UsageError

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for a connection
_PORTS = {"http": 80, "https": 443}


def require_checkpoint(path: str, revision: str = "") -> None:
    """Raises UsageError where ``path`` is no folder and no hub id, or one of a hub that does not answer and of which nothing is
    in the cache.
    """
    if Path(path).is_dir():
        return
    if path.startswith(("/", ".", "~")) or path.count("/") != 1:  # must not be asked of the hub
        raise UsageError(f"cannot load {path}: no such folder", "give a folder with config.json, or a hub id, ORG/NAME")
    from huggingface_hub import is_offline_mode, try_to_load_from_cache

    why = "" if is_offline_mode() else _silence()
    cached = try_to_load_from_cache(path, "config.json", revision=revision or None)
    if (why or is_offline_mode()) and not isinstance(cached, str):
        said = f"{_host()[0]} does not answer" + (f" ({why})" if why else "")
        raise UsageError(
            f"cannot load {path}: no such folder, {said}, and it is not in the cache",
            "give a folder with config.json, or download it where there is a network (HF_HOME says where it is kept)",
        )
    settle()


def settle() -> None:
    """Where the hub does not answer, have its client, and those of transformers and datasets, use what is in the cache."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (why := _silence()):
        log.warning("%s does not answer (%s): only what is in the cache is used", _host()[0], why)
        constants.HF_HUB_OFFLINE = True


def _host() -> tuple[str, int]:
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443)


@functools.lru_cache(maxsize=1)
def _silence() -> str:
    """Why no connection to the hub can be opened; "" where one can. Behind a proxy that is not known, and taken for granted."""
    if getproxies():
        return ""
    host, port = _host()
    try:
        with socket.create_connection((host, port), timeout=PATIENCE):
            return ""
    except OSError as error:
        return error.strerror or str(error)
