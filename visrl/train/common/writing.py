"""Weights and states are written by libraries that each have an error of their own for a disk that takes no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from visrl.core.json_files import reason
from visrl.errors import UsageError, refused

KEPT = "free disk space and run the same command again: it goes on from the newest checkpoint"
_OF_THE_DISK = ("inline_container", "PytorchStreamWriter", "I/O error", "(os error ", "No space left on device")
"""In the errors of torch.save (a RuntimeError), safetensors, and tokenizers (a bare Exception)."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raises UsageError where the system does not take what is written below ``place``; other errors pass."""
    try:
        yield
    except OSError as error:
        raise refused(error, error.filename or place, KEPT) from error
    except UsageError:
        raise
    except Exception as error:
        if not any(words in str(error) for words in _OF_THE_DISK):
            raise
        raise UsageError(f"{place}: cannot be written: {reason(error)}", KEPT) from error
