"""The commands that start a run: here, by accelerate, by torchrun, and as a SLURM script. Printed, never run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from visrl.errors import UsageError

A_NODE = 8
CONFIGS = {"ddp": "ddp", "fsdp": "fsdp", "zero2": "deepspeed-zero2", "zero3": "deepspeed-zero3"}


def commands(words: Sequence[str], gpus: int, sharding: str | None) -> list[str]:
    """The command alone for one process, else by accelerate and by torchrun. sharding None: nothing is trained."""
    plain = shlex.join(words)
    if gpus == 1:
        return [plain]
    config = f" --config_file recipes/accelerate/{CONFIGS[sharding]}.yaml" if sharding else ""
    by_accelerate = f"accelerate launch{config} --num_processes {gpus} --no_python {plain}"
    if gpus > A_NODE:
        return ["# several machines: use the SLURM script"]
    plainly = sharding in (None, "ddp")  # the other ways need accelerate's configuration
    return [by_accelerate, *([f"torchrun --nproc_per_node {gpus} --no-python {plain}"] if plainly else [])]


def for_loop(gpus: int, sharding: str) -> list[str]:
    """What a loop is told so that its training phases have all GPUs. Raises UsageError for more than one machine's."""
    if gpus > A_NODE:
        raise UsageError(
            f"--gpus {gpus}: a recipe of kind loop runs on one machine, of {A_NODE} GPUs",
            "recipes of its phases (sft, pairs, dpo) run on several",
        )
    if gpus == 1:
        return []
    config = f"recipes/accelerate/{CONFIGS[sharding]}.yaml"
    return ["--set", f"launch=accelerate launch --config_file {config} --num_processes {gpus} --no_python"]


def slurm(
    words: Sequence[str], gpus: int, sharding: str | None, hours: float, name: str, *, starts_itself: bool = False
) -> str:
    """A batch script: a task a node, ``A_NODE`` GPUs a node, twice the estimated time. Runs resume, so too short a limit loses
    nothing that was finished. starts_itself: one process, which starts others where it needs them.
    """
    nodes, on_each = -(-gpus // A_NODE), min(gpus, A_NODE)
    config = f"--config_file recipes/accelerate/{CONFIGS[sharding]}.yaml " if sharding else ""
    limit = max(1, round(2 * hours + 0.5))
    launch = (
        f"accelerate launch {config}--num_machines {nodes} --num_processes {nodes * on_each} --machine_rank $SLURM_NODEID"
        f" --main_process_ip $MAIN --main_process_port 29500 --no_python {shlex.join(words)}"
    )
    if starts_itself:
        launch = shlex.join(words)
    return "\n".join(
        (
            "#!/bin/bash",
            f"#SBATCH --job-name={name}",
            f"#SBATCH --nodes={nodes}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --gpus-per-node={on_each}",
            f"#SBATCH --time={limit}:00:00",
            "#SBATCH --requeue",
            "set -euo pipefail",
            *([] if starts_itself else [f"export VISRL_PROCESSES={nodes * on_each}  # fewer are an error"]),
            'export MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"srun bash -c {shlex.quote(launch)}",
        )
    )
