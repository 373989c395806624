"""What any machine with one GPU can tell about this package, in one command of at most 8 minutes.

    PYTHONPATH=tests:tests/perf python tests/gpu/run.py [--out FOLDER] [--parts texts,flex,…] [--device cpu --small]

texts     the tiny families on the device and on the CPU, float32: equal greedy texts, and the largest difference of log-probabilities
flex      branched rows by FlexAttention against the dense mask: loss and gradients in float32, and seconds of a step of long rows
evaluate  a LLaVA-1.5-7B of real shape and random weights in bfloat16: two turns against `generate` per sample
dpo       step-level DPO's step against TRL's DPOTrainer on that model, and peak memory against the estimate
grpo      GRPO's step against TRL's GRPOTrainer

Each part runs in a process of its own and leaves FOLDER/PART.json; a part that fails is named, and the others go on. The table
at the end is what docs/performance.md quotes. Only what is imported has to be there: torch, transformers, accelerate, peft, and
of the parts that train trl and datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("texts", "flex", "evaluate", "dpo", "grpo")


def child(part: str, device: str, small: bool, out: Path) -> None:
    """One part in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for folder in (HERE.parent, HERE.parent / "perf", HERE.parent / "train", HERE.parent / "shapes", HERE):
        sys.path.insert(0, str(folder))
    import parts
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    found = parts.PARTS[part](device, small)
    card = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = {"device": card, "torch": torch.__version__, "transformers": transformers.__version__, "small": small}
    (out / f"{part}.json").write_text(json.dumps({**about, "rows": found}, indent=1))


def table(found: list[dict[str, Any]]) -> str:
    """Rows as markdown, a column per key."""
    columns = list(dict.fromkeys(key for row in found for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in found:
        cells = [f"{row[c]:.4g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="two layers, a sixteenth of the width, 1,000 words")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--child", choices=PARTS)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="visrl-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    if args.child:
        child(args.child, args.device, args.small, out)
        return 0
    failed = []
    for part in args.parts.split(","):
        began = time.perf_counter()
        command = [sys.executable, __file__, "--child", part, "--device", args.device, "--out", str(out)]
        code = subprocess.run([*command, *(["--small"] if args.small else [])], check=False).returncode
        print(f"\n## {part}: {time.perf_counter() - began:.0f} s", flush=True)
        if code:
            failed.append(part)
            print(f"failed with exit code {code}", flush=True)
        else:
            said = json.loads((out / f"{part}.json").read_text())
            print(
                f"{said['device']}, torch {said['torch']}, transformers {said['transformers']}\n\n{table(said['rows'])}",
                flush=True,
            )
    print(f"\n{out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
