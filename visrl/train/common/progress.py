"""How training goes: a line on stderr (live on a terminal, now and then elsewhere), the history on disk, curves at
the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback

from visrl.core.records import dump_json, write_atomically

LINE_EVERY_S = 30.0
_SHOWN = (
    ("loss", "loss {:.4f}"),
    ("box/rewards/margins", "box margin {:+.3f}"),
    ("box/rewards/accuracies", "box acc {:.2f}"),
    ("answer/rewards/margins", "answer margin {:+.3f}"),
    ("answer/rewards/accuracies", "answer acc {:.2f}"),
    ("mean_token_accuracy", "token acc {:.3f}"),
    ("box/reward", "box reward {:.3f}"),
    ("look1/reward", "look 1 reward {:.3f}"),
    ("look2/reward", "look 2 reward {:.3f}"),
    ("answer/reward", "answer reward {:.3f}"),
    ("kl", "kl {:.4f}"),
)


class Progress(TrainerCallback):
    """Prints ``title: step/steps · loss … · margin … · accuracy … · s left``. Processes other than the first are
    silent.
    """

    def __init__(self, title: str, out: TextIO | None = None) -> None:
        self.title, self.out = title, out or sys.stderr
        self._shown: list[str] = []
        self._began = self._said = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step
        if state.global_step:
            self._say(f"{self.title}: goes on from step {state.global_step}", state, last=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        found = [(form, (logs or {}).get(key)) for key, form in _SHOWN]
        self._shown = [form.format(float(value)) for form, value in found if value is not None] or self._shown

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(self._line(state), state, last=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._say(self._line(state), state, last=True)

    def reference(self, total: int) -> Callable[[int], None]:
        """A ticker for the reference's ``total`` pairs."""
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            self._say(f"{self.title}: reference {done}/{total} pairs", None, last=done == total)

        return tick

    def _line(self, state: Any) -> str:
        steps = state.global_step - self._first_step
        spent = time.monotonic() - self._began
        left = f"{spent / steps * (state.max_steps - state.global_step):.0f} s left" if steps else "?"
        return " · ".join([f"{self.title}: {state.global_step}/{state.max_steps}", *self._shown, left])

    def _say(self, line: str, state: Any, *, last: bool) -> None:
        if state is not None and not state.is_world_process_zero:
            return
        now = time.monotonic()
        if self.out.isatty():
            print(f"\r\x1b[K{line}", end="\n" if last else "", file=self.out, flush=True)
        elif last or now - self._said >= LINE_EVERY_S:
            self._said = now
            print(line, file=self.out, flush=True)


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """``history.json``: every logged step. Numbers that are not finite become null."""
    clean = [
        {k: v if not isinstance(v, float) or abs(v) < float("inf") else None for k, v in row.items()} for row in history
    ]
    write_atomically(folder / "history.json", dump_json(clean))


def draw_curves(folder: Path, title: str, history: Sequence[Mapping[str, Any]]) -> Path | None:
    """``curves.png``: loss, and where there are rewards their margins and accuracies, over steps. None where nothing
    was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {
        "loss": "loss",
        "reward margin": "rewards/margins",
        "reward accuracy": "rewards/accuracies",
        "reward": "reward",
        "share of groups without spread": "without_spread",
    }
    found = {name: _series(history, ending) for name, ending in groups.items()}
    found = {name: series for name, series in found.items() if series}
    if not found:
        return None
    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.2), squeeze=False)
    for axis, (name, series) in zip(axes[0], found.items(), strict=True):
        for label, (steps, values) in series.items():
            axis.plot(steps, values, label=label)
        axis.set(xlabel="step", ylabel=name)
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _series(history: Sequence[Mapping[str, Any]], ending: str) -> dict[str, tuple[list[int], list[float]]]:
    """Label -> (steps, values) of every logged quantity whose name ends so."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in history:
        for key, value in sorted(row.items()):  # a resumed phase reads its rows back in another order
            if (key == ending or key.endswith(f"/{ending}")) and value is not None:
                steps, values = series.setdefault(key.removesuffix(ending).strip("/") or "all", ([], []))
                steps.append(row["step"])
                values.append(float(value))
    return series
