"""The commands that start a plan: here, by accelerate, by torchrun, and as a SLURM script. Printed, never run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

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


def slurm(words: Sequence[str], gpus: int, sharding: str | None, hours: float, name: str) -> str:
    """A batch script: a task a node, ``A_NODE`` GPUs a node, twice the planned time. Runs resume, so too short a limit loses
    nothing that was finished."""
    nodes, on_each = -(-gpus // A_NODE), min(gpus, A_NODE)
    config = f"--config_file recipes/accelerate/{CONFIGS[sharding]}.yaml " if sharding else ""
    limit = max(1, round(2 * hours + 0.5))
    launch = (
        f"accelerate launch {config}--num_machines {nodes} --num_processes {nodes * on_each} --machine_rank $SLURM_NODEID"
        f" --main_process_ip $MAIN --main_process_port 29500 --no_python {shlex.join(words)}"
    )
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
            f"export VISRL_PROCESSES={nodes * on_each}  # fewer are an error",
            'export MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"srun bash -c {shlex.quote(launch)}",
        )
    )
