"""Damage valid files and read them with every command that does, by hand: ``python tests/fuzz/run.py --number 5000 --seed 1``."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_campaign import campaign, groups, save, table


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), help="kinds of files, as the table names them; default: all")
    parser.add_argument("--save", type=Path, help="a folder for the damaged files that made a fault")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = campaign(Path(folder), args.number, args.seed, only=args.only)
    print("\n".join(table(tally)))
    print(
        f"{args.number} damaged files, {len(tally.faults)} faults, slowest command {tally.slowest:.1f} s of processor time, {time.monotonic() - began:.0f} s in all"
    )
    for (what, code, line), n in groups(tally.faults).most_common():
        print(f"{n:>5} {what} {code}: {line}")
    if args.save:
        save(tally.faults, args.save)
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
