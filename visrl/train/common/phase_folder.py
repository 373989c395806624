"""A phase of training on disk: one folder that the same command fills, resumes or finds finished.

``settings.json``  what was asked; another recipe in the same folder is an error, not a mixture
``checkpoint-N/``  written under ``.staging`` and renamed, so that every one there is complete; see checkpoints.py
``final/``         weights and processor, written beside and renamed; with ``phase.json`` in it the phase is done
``history.json``, ``curves.png``

transformers writes optimiser and random state with torch.save and reads them back with ``weights_only``; nothing of
ours does.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from visrl.core.crops import CropName
from visrl.core.json_files import read_object
from visrl.core.plugins import included
from visrl.core.records import dump_json, write_atomically
from visrl.errors import UsageError
from visrl.runs.distributed import rank
from visrl.train.common.checkpoints import newest_whole, read_window, restore_window, seal, window_of, write_window
from visrl.train.common.models import TrainableModel, bare
from visrl.train.common.progress import Progress, draw_curves, write_history
from visrl.train.common.writing import writing
from visrl.train.config.protocols import crop_under, protocol_of
from visrl.train.config.recipe import ModelSection, flat

STAGING = ".staging"
FINAL_STAGING = ".staging-final"
DATA = "data_sha256"
WEIGHTS = "weights_sha256"


class PhaseTrainer(Trainer):
    """Mixed in before a TRL trainer: progress, complete checkpoints, and :meth:`begin` before the first step."""

    def __init__(self, *, title: str, **more: Any) -> None:
        self.progress = Progress(title)
        self._staging = False
        self._began = False
        self.resumed: Path | None = None
        super().__init__(**more)
        for theirs in (PrinterCallback, ProgressCallback):
            self.remove_callback(theirs)
        self.add_callback(_Begin(self))
        self.add_callback(self.progress)

    def go_on(self) -> None:
        """Before the first step: what is in a checkpoint, but what transformers does not read back."""
        window = None if self.resumed is None else read_window(self.resumed, self.args.process_index)
        if window is not None:
            restore_window(self, window)

    def begin(self) -> None:
        """Called when model and state are where they will be trained, resumed or not."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the record of a phase is settings.json and history.json."""

    def _get_output_dir(self, trial: Any) -> str:
        out: str = super()._get_output_dir(trial)
        return str(Path(out) / STAGING) if self._staging else out

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights of a checkpoint, every one of them.

        transformers saves multimodal models under older names of their weights and, resuming, loads the file by the
        new ones: nothing matches, it warns, and training goes on from the weights it started with (seen with 5.23 on
        LLaVA).
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or bare(self.model) is not self.model:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(stored.state_dict())

    def _run_epoch(self, **more: Any) -> None:
        """Nothing where all steps are done: transformers, resumed from its last step within an epoch, takes one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**more)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The mean loss at the end is of all steps, not of those since a checkpoint."""
        if "train_loss" in logs:
            self.model.train()  # as after a step, if there was none: TRL keeps what it logs by the model's mode
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        self._staging = True
        try:
            with writing(folder / name):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        write_window(folder / STAGING / name, self.args.process_index, window_of(self))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder / STAGING / name)
            into_place(folder / STAGING / name, folder / name)
            self.rotate()
        self.accelerator.wait_for_everyone()

    def rotate(self) -> None:
        """Delete the oldest checkpoints beyond the limit."""
        limit = self.args.save_total_limit
        rotate_checkpoints(output_dir=self.args.output_dir, save_total_limit=limit)


def only_warms_up(args: TrainingArguments, steps: int) -> bool:
    """Whether no step learns: transformers' schedules begin their warm-up at learning rate 0."""
    return steps == 1 and args.get_warmup_steps(steps) >= 1


class _Begin(TrainerCallback):
    def __init__(self, trainer: PhaseTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self.trainer.is_world_process_zero() and only_warms_up(self.trainer.args, self.trainer.state.max_steps):
            print(
                "warning: the phase has one step, which is warm-up with learning rate 0: the weights will not change"
                " (trainer.warmup_steps: 0)",
                file=sys.stderr,
            )
        self.trainer.go_on()
        self.trainer.begin()


def into_place(beside: Path, final: Path) -> None:
    """Flush a folder's files to disk and rename it; what was there before goes away first."""
    for path in sorted(beside.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    beside.replace(final)


def claim(folder: Path, settings: Mapping[str, Any], data: str, weights: str | None = None) -> None:
    """Say what this folder is for, when there is something to write to it. Raises UsageError as :func:`check_claim` does."""
    check_claim(folder, settings, data, weights)
    path = folder / "settings.json"
    if rank() == 0 and (not path.is_file() or not _holds_more(folder)):  # the others do not know the weights
        write_atomically(path, dump_json(_claimed(settings, data, weights)))


def check_or_renew(folder: Path, settings: Mapping[str, Any], data: str, weights: str | None = None) -> None:
    """:func:`check_claim`; a finished phase whose claim a loop took away, before it was killed, gets it again."""
    (claim if finished(folder) else check_claim)(folder, settings, data, weights)


def _claimed(settings: Mapping[str, Any], data: str, weights: str | None) -> dict[str, Any]:
    files = included()
    return {**settings, DATA: data, WEIGHTS: weights, **({"include": files} if files else {})}


def _holds_more(folder: Path) -> bool:
    """Whether there is anything but a claim, and the lock of who is at work."""
    return any(file.name not in ("settings.json", ".lock") for file in folder.iterdir())


def check_claim(folder: Path, settings: Mapping[str, Any], data: str, weights: str | None = None) -> None:
    """Raises UsageError where a folder holds something else, naming the first difference; a claim under which nothing was
    written yet is none. A key that older versions do not have, and that says nothing, is no difference.

    data: the hash of the rows (visrl/train/data/fingerprint.py). weights: of what the phase begins from (starting_weights in
    models.py); where they are gone, as they may be once it is finished, they are not compared.
    """
    path = folder / "settings.json"
    if not path.is_file() or not _holds_more(folder):
        return
    asked = dict(flat(json.loads(dump_json(_claimed(settings, data, weights)))))
    found = dict(flat(read_object(path, "choose another output folder, or delete this one")))
    if found.setdefault(DATA, data) != data:  # an older visrl wrote none
        raise UsageError(
            f"{folder} was made with different rows than the data now has",
            "restore the data, choose another output folder, or delete this one",
        )
    was = found.pop(WEIGHTS, None)
    if weights is not None and was not in (None, weights):
        raise UsageError(
            f"{folder} was made from other weights than {asked.get('model.path', 'the model')} now has",
            "restore the weights, choose another output folder, or delete this one",
        )
    for key in sorted({*found, *asked} - {WEIGHTS}):
        if found.get(key) != asked.get(key):
            was, now = found.get(key), asked.get(key)
            raise UsageError(
                f"{folder} was made with {key} = {was!r}, not {now!r}",
                "choose another output folder, or delete this one",
            )


def finished(folder: Path) -> bool:
    """Whether a phase ended here."""
    return (folder / "final" / "phase.json").is_file()


def train(trainer: PhaseTrainer, trainable: TrainableModel, folder: Path) -> None:
    """Train from the newest complete checkpoint, or from the start, and leave ``final/``, history and curves."""
    at_work = trainer.accelerator
    if at_work.num_processes > 1 and at_work.is_main_process:
        print(f"{at_work.num_processes} processes ({at_work.distributed_type.value})", file=sys.stderr)
    trainer.resumed = _newest(trainer, folder)
    try:
        trainer.train(resume_from_checkpoint=None if trainer.resumed is None else str(trainer.resumed))
    except ValueError as error:
        if trainer.resumed is None or "parameter group" not in str(error):
            raise
        raise UsageError(
            f"{trainer.resumed} is of a model that trained other parameters: {error}",
            "an older visrl or another library made it: delete it to begin again",
        ) from error
    with writing(folder / "final"):
        conclude(trainer, trainable, folder)
    trainer.accelerator.wait_for_everyone()


def say_where(final: Path, model: ModelSection, protocols: Collection[str], crop: CropName) -> None:
    """Where a phase's weights are, and the command that scores them as they were trained."""
    lora = (final / "adapter_config.json").is_file()
    args = {"dtype": model.dtype, "box_format": model.box_format, "processor": model.processor if lora else None}
    said = ",".join(f"{name}={value}" for name, value in args.items() if value)
    looking = sorted(name for name in protocols if protocol_of(name).looks)
    how = f"--protocol {looking[0]} --crop {crop_under(looking[0], crop)}" if looking else "--protocol direct"
    print(f"weights: {final}" + (" (a LoRA; its base is found by its config)" if lora else ""), file=sys.stderr)
    print(
        f"score them: visrl-eval --model hf:{final} --model-args {said} {how} --tasks viscot --data data\n"
        "(or other --tasks and --data, where your test questions are others)",
        file=sys.stderr,
    )


def _newest(trainer: PhaseTrainer, folder: Path) -> Path | None:
    """What all processes go on from: the first one looks, and says what is wrong to all."""
    newest, message, hint = None, "", ""
    if trainer.accelerator.is_main_process:
        _clear(folder)
        try:
            newest = newest_whole(folder)
        except UsageError as error:
            message, hint = error.message, error.hint
    newest, message, hint = broadcast_object_list([newest, message, hint])
    if message:
        raise UsageError(message, hint)
    return newest


def _clear(folder: Path) -> None:
    """Take away what a killed process was writing: its pieces must not end up beside ours."""
    for place in (folder / STAGING, folder / FINAL_STAGING):
        shutil.rmtree(place, ignore_errors=True)
    for piece in folder.glob(".*.tmp"):
        piece.unlink()


def conclude(trainer: PhaseTrainer, trainable: TrainableModel, folder: Path) -> None:
    """Write what a finished phase leaves. Under FSDP and DeepSpeed every process takes part in gathering the weights."""
    history = trainer.state.log_history
    beside = folder / FINAL_STAGING
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(beside))
    if not trainer.accelerator.is_main_process:
        return
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainable.model.save_pretrained(beside)
    trainable.processor.save_pretrained(beside)
    last: dict[str, Any] = next((row for row in reversed(history) if "loss" in row), {})
    about = {"steps": trainer.state.global_step, "last": last, "torch": torch.__version__}
    if (folder / "settings.json").is_file():  # not where a test trains without a claim
        about[WEIGHTS] = read_object(folder / "settings.json", "delete this folder").get(WEIGHTS)
    write_atomically(beside / "phase.json", dump_json(about))
    write_history(folder, history)
    draw_curves(folder, trainer.progress.title, history)
    into_place(beside, folder / "final")
    trainer.rotate()  # a kill may have come between the last checkpoint and the end of the one before
    shutil.rmtree(folder / STAGING, ignore_errors=True)
