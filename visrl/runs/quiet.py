"""``--quiet``: nothing of libraries' bars, advice and warnings of what will change one day."""

from __future__ import annotations

import os
import warnings

SETTINGS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
"""Read by the libraries when they are imported, and by the processes that a command starts. What a user has set stays."""


def hush() -> None:
    """Call it before the libraries are imported. Errors, and visrl's own warnings, are still said."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
