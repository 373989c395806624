"""What a recipe leaves to the machine: precision, checkpointing of activations, CPU or GPU, one process or many."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrl.errors import UsageError, printable

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OWN: dict[str, str] = {  # trainer keys that are visrl's business -> where they are set
    "output_dir": "output",
    "seed": "seed",
    "max_length": "max_tokens: nothing is ever cut, because a cut may hit a picture",
    "truncation_mode": "max_tokens: nothing is ever cut, because a cut may hit a picture",
    "remove_unused_columns": "visrl",
    "precompute_ref_log_probs": "visrl: always, once per phase",
    "model_init_kwargs": "model",
    "sync_ref_model": "visrl: the reference is the start of the phase",
    "disable_tqdm": "visrl",
    "save_only_model": "visrl: from a checkpoint without the optimiser's state nothing can go on",
}


def end_with_parent(_: int) -> None:
    """For a DataLoader's worker: killed when the process that reads from it is. Else it lives on for seconds, and one was seen
    to stay for good (torch 2.14), waiting to hand over what nobody reads, with the memory it inherited.

    A signal to the whole group, as Ctrl-C is, ends it without an error: torch would raise that one in the reader, over the
    KeyboardInterrupt it has of the same signal.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def trainer_config(config: type, section: Mapping[str, Any], folder: Path, seed: int, model: Any) -> Any:
    """TRL's ``config`` for this machine: the recipe's section over defaults that depend on where it runs.

    Without a GPU: no half precision, no checkpointing of activations. A frozen vision tower leaves no parameter
    unused, so DDP need not look for any; nothing is reported anywhere unless ``report_to`` says so. Raises UsageError for
    settings that TRL or transformers refuses.
    """
    import warnings
    from dataclasses import fields

    import torch
    from transformers.utils.logging import disable_progress_bar

    from visrl.train.common.vision_cache import vision_is_frozen

    disable_progress_bar()  # one progress line, ours
    # TRL's defaults still say it, whatever a recipe says
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)

    gpu = torch.cuda.is_available()
    here: dict[str, Any] = {
        "report_to": "none",
        "bf16": gpu and model.dtype == torch.bfloat16,
        "gradient_checkpointing": gpu,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "logging_first_step": True,
        "ddp_find_unused_parameters": not vision_is_frozen(model),
    }
    ours = {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    if any(item.name == "max_length" for item in fields(config)):
        ours["max_length"] = None
    try:
        return config(**{**here, **section, **ours})
    except (
        ValueError,
        TypeError,
        ImportError,
    ) as error:  # what transformers and TRL say of settings that do not fit together
        raise UsageError(
            f"trainer: {printable(str(error))}", f"the keys of `trainer` are those of {config.__name__}"
        ) from error
