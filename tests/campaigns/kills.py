"""SIGKILL at random moments of every command that writes a folder; the same command goes on until it is done.

    python tests/campaigns/kills.py --count 2000 --seed 1 [SCENE ...]

Each command runs undisturbed once. Then, folder after folder, it is killed again and again, each time at a moment drawn from the time
that it took undisturbed, until an attempt comes to its end; every file is compared with the undisturbed ones'. Attempts are forks of a
process that has imported everything, so that a kill costs what the command does. Prints a row per command.
"""

import argparse
import contextlib
import gc
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from kill_scenes import SCENES, files, left_over

os.environ["HF_HUB_OFFLINE"] = "1"
SHARES = {
    "evaluation": 7,
    "scoring": 4,
    "pairs": 3,
    "sft": 2,
    "dpo": 2,
    "grpo": 2,
}  # of the kills; the other scenes one part each
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "safetensors.torch", "matplotlib.pyplot", "accelerate",
         "transformers.models.llava.modeling_llava", "visrl.train.sft.sft", "visrl.train.dpo.stages", "visrl.train.grpo.phase", "visrl.train.loop.run",
         "visrl.train.small_model.run", "visrl.train.pairs.command", "visrl.cli.evaluate", "visrl.cli.train",
         "visrl.policies.hf.policy", "visrl.policies.hf.loading", "visrl.evals.judge", "visrl.tasks", "pairs_made", "runs_made")  # fmt: skip


def preload():
    """Import what the commands import, before any fork; nothing is computed here, or the children inherit threads that are not theirs."""
    import matplotlib

    matplotlib.use("Agg")
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def start(scene, folder):
    """The command in a fork; what it says goes to ``log``."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import torch

        torch.set_num_threads(1)
        code = scene.run()
    except BaseException:  # noqa: BLE001 - whatever comes out is the finding
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child, seconds):
    """Its exit code; None where it is still at work after ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    return None


def attempt(scene, folder, seconds):
    """Exit code, or None where it was killed after ``seconds``."""
    child = start(scene, folder)
    code = ended(child, seconds)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return code


def new_folder(inputs, place):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(inputs, place)
    return place


def campaign(scene, count, dice, work, keep, until):
    """Kills until there were ``count``, or until that time of the monotonic clock. Returns the row of the table, and whether it found a fault."""
    inputs = work / "inputs"
    inputs.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        scene.make(inputs)
    took, calm = [], None
    for _ in range(2):  # twice: the undisturbed command itself must give one result
        folder, began = new_folder(inputs, work / "run"), time.monotonic()
        code = attempt(scene, folder, 600)
        took.append(time.monotonic() - began)
        if code != 0:
            raise SystemExit(f"{scene.name}: undisturbed, it ended with {code}: {(folder / 'log').read_text()[-3000:]}")
        again = files(folder / "out")
        if calm is not None and again != calm:
            raise SystemExit(
                f"{scene.name}: two undisturbed runs differ: {[n for n in calm if calm[n] != again.get(n)]}"
            )
        calm = again
    kills, folders, leftovers, faults = 0, 0, 0, Counter()
    while kills < count and time.monotonic() < until:
        folder, folders, here = new_folder(inputs, work / "run"), folders + 1, 0
        while True:
            last = here >= 12  # a scene that restarts from nothing would never end
            code = attempt(scene, folder, 60 + 20 * max(took) if last else dice.uniform(0, 1.05) * max(took))
            if code is not None or last:
                break
            kills, here = kills + 1, here + 1
        fault = judged(code, folder, calm)
        leftovers += len(left_over(folder / "out"))
        print(
            f"{scene.name}: {kills} kills, {folders} folders, {faults.total() + bool(fault)} faults",
            file=sys.stderr,
            flush=True,
        )
        if fault:
            faults[fault] += 1
            shutil.copytree(folder, keep / f"{scene.name.replace(' ', '-')}-{folders}")
    return (scene.name, took[-1], kills, folders, len(calm), leftovers, faults), bool(faults)


def judged(code, folder, calm):
    """What is wrong with a folder whose command came to its end, or None."""
    said = (folder / "log").read_text(errors="replace")
    if code is None:
        return "hang"
    if "Traceback" in said:
        return "traceback: " + said.strip().splitlines()[-1][:90]
    if code != 0:
        return (
            f"exit {code}: "
            + next((line for line in reversed(said.splitlines()) if line.startswith("error: ")), "")[:100]
        )
    now = files(folder / "out")
    different = [name for name in sorted({*now, *calm}) if now.get(name) != calm.get(name)]
    return f"different: {', '.join(different)}" if different else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--count", type=int, default=2000, help="kills in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="of each command, then no new folder is begun"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "kills-kept", help="where faulty folders go"
    )
    args = parser.parse_args()
    preload()
    chosen = args.scenes or list(SCENES)
    parts = {name: SHARES.get(name, 1) for name in chosen}
    print(
        f"{'command':<22} {'alone':>7} {'kills':>6} {'folders':>8} {'files':>6} {'left over':>10}  faults", flush=True
    )
    found, kills = False, 0
    for name, part in parts.items():
        with tempfile.TemporaryDirectory() as work:
            dice = random.Random(f"{args.seed} {name}")
            row, fault = campaign(
                SCENES[name],
                -(-args.count * part // sum(parts.values())),
                dice,
                Path(work),
                args.keep,
                time.monotonic() + args.seconds,
            )
        found, kills = found or fault, kills + row[2]
        print(
            f"{row[0]:<22} {row[1]:>5.2f} s {row[2]:>6} {row[3]:>8} {row[4]:>6} {row[5]:>10}  {sum(row[6].values())}",
            flush=True,
        )
        for fault_said, n in row[6].most_common():
            print(f"{n:>8} {fault_said}", flush=True)
    print(f"{kills} kills", flush=True)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
