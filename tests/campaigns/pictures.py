"""Mutated pictures of every format through the decoder that evaluation and training use: an RGB image, or a PictureError.

    python tests/campaigns/pictures.py --count 200000 --seed 1

Valid pictures of every format that Pillow writes, allowed here or not, in several modes and sizes; each is cut, flipped, spliced
with another, or its header's numbers are changed. Prints a row per format.
"""

import argparse
import io
import random
import struct
import sys
import time
import traceback
from collections import Counter

from PIL import Image

from visrl.core.types import Picture
from visrl.errors import PictureError
from visrl.tasks.pictures import decoded

WRITTEN = {
    "PNG": ({}, {"optimize": True}), "JPEG": ({}, {"progressive": True}), "WEBP": ({}, {"lossless": True}), "GIF": ({},), "BMP": ({},),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"compression": "tiff_adobe_deflate"}), "PPM": ({},),
    "AVIF": ({},), "DDS": ({},), "ICO": ({},), "TGA": ({},), "PCX": ({},), "JPEG2000": ({},), "EPS": ({},), "SGI": ({},), "ICNS": ({},), "PDF": ({},),
}  # fmt: skip
MODES = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA")
SLOW_S = 5.0


def valid(dice):
    """[(format, bytes)] of small pictures of noise."""
    found = []
    for name, options in WRITTEN.items():
        for mode in MODES:
            for more in options:
                image = Image.frombytes(
                    "RGB",
                    (size := (dice.randrange(1, 40), dice.randrange(1, 40))),
                    dice.randbytes(3 * size[0] * size[1]),
                )
                file = io.BytesIO()
                try:
                    image.convert("L").convert(mode).save(file, name, **more) if mode in (
                        "I;16",
                        "I",
                        "F",
                    ) else image.convert(mode).save(file, name, **more)
                except (OSError, ValueError, KeyError, AttributeError, TypeError):
                    continue  # this format has no such mode, or this Pillow not this format
                found.append((name, file.getvalue()))
    return found


def mutated(data, others, dice):
    """Damaged bytes: headers more often than pixels."""
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(min(len(data), dice.choice((64, 256, len(data)))) or 1)
        how = dice.randrange(8)
        if how == 0:
            data = data[:at]
        elif how == 1:
            data = data[:at] + data[at + dice.randrange(1, 20) :]
        elif how == 2:
            data = data[:at] + dice.randbytes(dice.randrange(1, 20)) + data[at:]
        elif how == 3 and data:
            data = data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]
        elif how == 4:
            number = dice.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, dice.randrange(2**32)))
            data = data[:at] + struct.pack(dice.choice(("<I", ">I")), number) + data[at + 4 :]
        elif how == 5:
            data = (
                data[:at] + struct.pack(dice.choice(("<H", ">H")), dice.choice((0, 1, 0x7FFF, 0xFFFF))) + data[at + 2 :]
            )
        elif how == 6:
            other = dice.choice(others)[1]
            data = data[:at] + other[dice.randrange(len(other)) :]
        else:
            data = data[:at] + data[at : at + 50] * dice.randrange(1, 5) + data[at + 50 :]
    return data


def campaign(count, seed):
    dice, seen, faults, examples, slowest = random.Random(seed), Counter(), Counter(), {}, Counter()
    sources = valid(dice)
    for number in range(count):
        name, data = sources[number % len(sources)]
        data = mutated(data, sources, dice)
        began = time.process_time()
        try:
            image = Picture(name, lambda data=data, name=name: decoded(data, name)).open()
            image.crop((0, 0, 1, 1)).load()
            result = "decoded" if image.mode == "RGB" else f"mode {image.mode}"
        except PictureError:
            result = "refused"
        except Exception:  # noqa: BLE001 - whatever comes out is the finding
            result = traceback.format_exc().strip().splitlines()[-1]
        spent = time.process_time() - began
        slowest[name] = max(slowest[name], spent)
        seen[name, result if result in ("decoded", "refused") else "fault"] += 1
        if result not in ("decoded", "refused") or spent > SLOW_S:
            faults[name, result] += 1
            examples.setdefault((name, result), data)
    return seen, faults, slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    seen, faults, slowest = campaign(args.count, args.seed)
    print(f"{'format':<10} {'pictures':>9} {'decoded':>8} {'refused':>8} {'faults':>7} {'slowest':>10}")
    for name in sorted({name for name, _ in seen}):
        counts = [seen[name, what] for what in ("decoded", "refused", "fault")]
        print(
            f"{name:<10} {sum(counts):>9} {counts[0]:>8} {counts[1]:>8} {counts[2]:>7} {slowest[name] * 1e3:>7.0f} ms"
        )
    for (name, what), n in faults.most_common():
        print(f"{n:>8} {name}: {what}")
    print(f"{args.count} mutated pictures, {sum(faults.values())} faults, {time.monotonic() - began:.0f} s")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
