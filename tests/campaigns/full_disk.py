"""Every command that writes a folder, on disks of every size that is too small for it; then with space, by the same command.

    sudo python tests/campaigns/full_disk.py --count 400 [SCENE ...]

The output folder is a tmpfs (mounting one needs root) that is full at a given byte: sizes are spread over what the command writes
undisturbed, so that every write is the one that fails. It must end with exit code 2 or 3, ``error: …`` and a hint, no traceback; with
space the same command must end with the bytes of the undisturbed run. Prints a row per command.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from kill_scenes import SCENES, files
from kills import attempt, judged, new_folder, preload

PAGE = 4096
ROOM = 1 << 30


@contextlib.contextmanager
def disk(place, size):
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def pages(folder):
    """What the files of a folder, and the folders, take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) if path.is_file() else 0 for path in folder.rglob("*"))


def refused(code, said):
    """What is wrong with the end of a command whose disk was full, or None."""
    if code is None:
        return "hang"
    if "Traceback" in said:
        return "traceback: " + said.strip().splitlines()[-1][:110]
    if code not in (0, 2, 3):
        return f"exit {code}"
    if code == 2 and not ("error: " in said and "hint: " in said):
        return "no error, or no hint"
    return None


def one(scene, inputs, work, size, calm):
    """One disk. Returns (exit code, fault)."""
    folder = new_folder(inputs, work / "run")
    kept = [path for path in (folder / "out").rglob("*") if path.is_file()] if (folder / "out").is_dir() else []
    beside = [(path.relative_to(folder / "out"), path.read_bytes()) for path in kept]
    with disk(folder / "out", size + sum(-(-len(data) // PAGE) * PAGE for _, data in beside)):
        for name, data in beside:  # what was there before the command
            (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / name).write_bytes(data)
        code = attempt(scene, folder, 300)
        fault = refused(code, (folder / "log").read_text(errors="replace"))
        (folder / "log").write_text("")
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(folder / "out")], check=True)
        return code, fault or judged(attempt(scene, folder, 300), folder, calm)


def campaign(scene, count, work):
    inputs = work / "inputs"
    inputs.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        scene.make(inputs)
    before = pages(inputs / "out") if (inputs / "out").is_dir() else 0
    folder = new_folder(inputs, work / "run")
    assert attempt(scene, folder, 300) == 0, (folder / "log").read_text()
    calm, whole = files(folder / "out"), pages(folder / "out") - before
    codes, faults = Counter(), Counter()
    for number in range(count):
        code, fault = one(scene, inputs, work, PAGE * max(1, round((whole + 2) * (number + 1) / count)), calm)
        codes[code] += 1
        if fault:
            faults[fault] += 1
    return whole * PAGE, codes, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--count", type=int, default=40, help="sizes of disk per command")
    args = parser.parse_args()
    preload()
    print(f"{'command':<22} {'writes':>10} {'disks':>6} {'done':>5} {'exit 2':>7} {'exit 3':>7}  faults", flush=True)
    found = False
    for name in args.scenes or list(SCENES):
        with tempfile.TemporaryDirectory() as work:
            size, codes, faults = campaign(SCENES[name], args.count, Path(work))
        found = found or bool(faults)
        print(
            f"{name:<22} {size:>10,} {args.count:>6} {codes[0]:>5} {codes[2]:>7} {codes[3]:>7}  {sum(faults.values())}",
            flush=True,
        )
        for what, n in faults.most_common():
            print(f"{n:>8} {what}", flush=True)
    return int(found)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
