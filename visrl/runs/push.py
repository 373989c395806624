"""Files to the Hugging Face hub, by its own client: the token is the client's business and in no message of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from visrl.errors import UsageError, printable
from visrl.runs.hub import settle


def push(repo: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Commit files (path in the repository -> a local file, or bytes) to the model ``repo``, which is made, private, if need be.

    Returns the commit's address. Raises UsageError where the hub does not answer, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    _require(repo)
    operations = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
    ]
    try:
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except Exception as error:  # noqa: BLE001 - the hub's client, and whatever it uses to connect
        raise _refused(repo, error) from None  # its request, and with it the token, must not be in a traceback


def read_card(repo: str) -> str | None:
    """The repository's README.md; None where it has none, or is not there yet. Raises UsageError as :func:`push` does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    _require(repo)
    try:
        return Path(hf_hub_download(repo, "README.md", force_download=True)).read_text(encoding="utf-8")
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    except Exception as error:  # noqa: BLE001 - as above
        raise _refused(repo, error) from None


def _require(repo: str) -> None:
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"--push {repo!r} is not a repository name", "ORG/NAME")
    settle()
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"{constants.ENDPOINT} does not answer, or HF_HUB_OFFLINE is set", "nothing was pushed")
    if get_token() is None:
        raise UsageError("--push needs a token of the hub", "hf auth login, or export HF_TOKEN")


def _refused(repo: str, error: Exception) -> UsageError:
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    said = str(error)
    for secret in filter(None, (get_token(), os.environ.get("HF_TOKEN"))):
        said = said.replace(secret, "***")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    hint = {401: "the token is not valid", 403: f"the token may not write to {repo}"}.get(
        status or 0, "nothing was pushed"
    )
    return UsageError(f"the hub refused {repo}: {printable(said.strip() or type(error).__name__)}", hint)
