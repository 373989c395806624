"""What a textured picture costs beside a plain one: the same scenes of `test` drawn both ways in turn, processor seconds.

python tests/perf/scenery.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from visrl.world import splits
from visrl.world.textured.scenery import PLAIN, TEXTURED, Scenery, draw


def seconds(scenes: list[splits.Scene], scenery: Scenery) -> float:
    began = time.process_time()
    for scene in scenes:
        draw(scene, scenery)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    scenes = [splits.picture("test", i) for i in range(args.pictures)]
    for scenery in (PLAIN, TEXTURED):
        draw(scenes[0], scenery)  # imports, and the field of grain
    rounds = [{scenery: seconds(scenes, scenery) for scenery in (PLAIN, TEXTURED)} for _ in range(args.repeat)]
    plain, textured = (1000 * statistics.median(r[s] for r in rounds) / len(scenes) for s in (PLAIN, TEXTURED))
    ratios = [r[TEXTURED] / r[PLAIN] for r in rounds]
    print(f"{os.cpu_count()} cores, {len(scenes)} pictures, {args.repeat} rounds in turn")
    print(f"plain {plain:.1f} ms, textured {textured:.1f} ms a picture: {statistics.median(ratios):.1f} times as long")


if __name__ == "__main__":
    main()
