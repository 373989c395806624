"""A real loop on the small world, killed with SIGKILL at random moments of every phase, against one that ran undisturbed.

    python tests/studies/loop_kills.py --kills 2 --output runs/kills

Small on purpose (a warm-up of 40 steps, 96 questions, 250 scored samples): models, trainers and scoring are the real ones. Every phase
and every scoring is killed ``--kills`` times, each time at a moment drawn from the time that it took undisturbed; then the same
command finishes. What is compared, byte for byte: the records, the pairs, the table of phases, and the weights of every phase.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open

RECIPE = Path(__file__).parents[2] / "recipes" / "world.yaml"
SMALL = (
    "sft.set={steps: 40, watch_every: 0}",
    "pairs.set={data.limit: 96, batch_size: 16}",
    "rl.set={trainer.num_train_epochs: 1, trainer.per_device_train_batch_size: 4, trainer.save_steps: 5}",
    "score.limit=50",
    "name=kills",
)
PHASES = ("base", "sft", "iter1/pairs", "iter1/rl1", "iter1/rl2")
COMPARED = ("records/*.json", "iter*/pairs/pairs.jsonl", "**/*.safetensors")


def start(output: Path) -> subprocess.Popen[bytes]:
    """The loop as a user would start it, from the folder above: records of pairs name the policy's place."""
    sets = [word for value in (f"output={output.name}", *SMALL) for word in ("--set", value)]
    with (output.parent / "log").open("ab") as log:
        return subprocess.Popen(["visrl-train", str(RECIPE), *sets], stdout=log, stderr=log, cwd=output.parent)


def state(output: Path, phase: str) -> str:
    """What a phase is doing: ``waits``, ``works``, ``scores`` or ``done``."""
    folder = output / phase
    if (folder / "metrics.json").is_file() or (phase.endswith("pairs") and (folder / "outputs.json").is_file()):
        return "done"
    if (folder / "outputs.json").is_file():
        return "scores"
    return "works" if (folder / "phase_config.json").is_file() else "waits"


def undisturbed(output: Path) -> dict[tuple[str, str], float]:
    """Run to the end. Returns the seconds that each phase worked and scored."""
    process, seen = start(output), {}
    while process.poll() is None:
        for phase in PHASES:
            now = state(output, phase)
            if now in ("works", "scores"):
                first, _ = seen.get((phase, now), (time.monotonic(), 0.0))
                seen[phase, now] = first, time.monotonic()
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the undisturbed loop ended with {process.returncode}: see {output.parent}/log")
    return {what: last - first for what, (first, last) in seen.items()}


def killed(output: Path, durations: dict[tuple[str, str], float], kills: int, dice: random.Random) -> int:
    """Run with kills in everything that took time. Returns how many processes were killed."""
    count = 0
    for (phase, doing), seconds in durations.items():
        for _ in range(kills):
            process = start(output)
            while process.poll() is None and state(output, phase) not in (doing, "done"):
                time.sleep(0.01)
            time.sleep(dice.random() * seconds)
            if process.poll() is None and state(output, phase) != "done":
                process.send_signal(signal.SIGKILL)
                count += 1
                print(f"killed {phase} while it {doing}", file=sys.stderr, flush=True)
            else:
                process.kill()  # the moment was missed: the phase had ended
            process.wait()
    if start(output).wait():
        raise SystemExit(f"the resumed loop failed: see {output.parent}/log")
    return count


def digests(output: Path) -> dict[str, str]:
    """sha256 of everything that is compared; checkpoints of trainers are means to an end and left out."""
    files = {file for pattern in COMPARED for file in output.glob(pattern) if "checkpoint-" not in str(file)}
    return {str(f.relative_to(output)): hashlib.sha256(content(f)).hexdigest() for f in sorted(files)}


def content(file: Path) -> bytes:
    """A file's bytes; of safetensors names, numbers and metadata in order, since their writer orders metadata at random."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    with safe_open(file, "np") as weights:
        parts = [
            f"{name} {weights.get_tensor(name).dtype}".encode() + weights.get_tensor(name).tobytes()
            for name in sorted(weights.keys())
        ]
        return b"".join([repr(sorted((weights.metadata() or {}).items())).encode(), *parts])


def table(output: Path) -> str:
    """The phases in the layout of the poster's table 2."""
    command = ["visrl-eval", "tables", "--paper", "viscot", "--format", "csv", str(output / "records")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="per phase and per scoring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/kills"))
    args = parser.parse_args()
    calm, stormy = (args.output.resolve() / name / "run" for name in ("calm", "stormy"))
    for output in (calm, stormy):
        output.parent.mkdir(parents=True)
    durations = undisturbed(calm)
    count = killed(stormy, durations, args.kills, random.Random(args.seed))
    a, b = digests(calm), digests(stormy)
    different = [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    same_table = table(calm) == table(stormy)
    print(f"{count} processes killed in {len(durations)} phases and scorings; {len(a)} files compared")
    print(f"different: {', '.join(different) or 'none'}; table of phases {'the same' if same_table else 'DIFFERENT'}")
    return int(bool(different) or not same_table)


if __name__ == "__main__":
    sys.exit(main())
