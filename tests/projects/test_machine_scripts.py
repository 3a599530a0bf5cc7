"""projects/machines/*.sh: what starts on each machine, with stand-ins for SLURM and trainers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machines import Machine, finish, free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "projects/machines"
MEET = {"NODES": "2", "NODE": "1", "GPUS": "8", "MEET": "tcp://first:29500"}
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
echo "${SRUN_CPUS_PER_TASK:-1} CPUs"
for node in 0 1; do SLURM_NODEID=$node "$@"; done
"""
SCONTROL = """#!/bin/bash
[[ $* == "show hostnames n[3-4]" ]] && printf "n3\\nn4\\n"
"""
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder in which scripts find their like, and programs that print how they are called."""
    (tmp_path / "projects").mkdir()
    (tmp_path / "projects/machines").symlink_to(SCRIPTS)
    programs = {"python": '#!/bin/bash\necho "$*"\n', "srun": SRUN, "scontrol": SCONTROL}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def bash(repository: Path, *command: str, status: int = 0, **environment: str) -> list[str]:
    process = subprocess.run(
        ["bash", *command],
        cwd=repository,
        env={"PATH": f"{repository}/bin:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == status, process.stderr
    return (process.stdout if status == 0 else process.stderr).splitlines()


def test_node(repository: Path) -> None:
    """The commands of docs/machines.md, for each trainer; what is missing or wrong is named."""
    node = "projects/machines/node.sh"
    shared = "--num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://first:29500"
    (said,) = bash(repository, node, "yaml", "--config-file", "a b.yaml", **MEET)
    assert said == f"projects/detection/train_net.py {shared} --config-file a b.yaml"
    (said,) = bash(repository, node, "lazy", "--resume", **MEET)
    assert said == f"projects/detection/find_tools.py lazyconfig_train_net.py {shared} --resume"
    shards = "--num_shards 2 --shard_id 1 --init_method tcp://first:29500 --cfg c.yaml --opts"
    for opts in ([], ["--opts", "OUTPUT_DIR", "out"]):
        (said,) = bash(repository, node, "video", "--cfg", "c.yaml", *opts, **MEET)
        rest = " ".join([*opts[1:], "NUM_GPUS 8"])
        assert said == f"-m mvitv2_slowfast.run_net {shards} {rest}"
    assert "must be yaml, lazy or video, got x" in bash(repository, node, "x", status=2, **MEET)[-1]
    without = {name: value for name, value in MEET.items() if name != "NODE"}
    assert "NODE: number of this machine" in bash(repository, node, "yaml", status=1, **without)[-1]


def test_slurm(repository: Path) -> None:
    """Each node has its number, the first one's address, a port of the job's and all its CPUs."""
    job = {"SLURM_JOB_NODELIST": "n[3-4]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    job |= {"SLURM_CPUS_PER_TASK": "64"}
    said = bash(
        repository, str(SCRIPTS / "slurm.sh"), "yaml", "--resume", SLURM_JOB_ID="1234567", **job
    )
    parts = [f"--num-machines 2 --machine-rank {node} --dist-url tcp://n3:24567" for node in (0, 1)]
    expected = [f"projects/detection/train_net.py --num-gpus 4 {part} --resume" for part in parts]
    assert said == ["64 CPUs", *expected]


RANK = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

def rank(local, machine, meet):
    dist.init_process_group(
        "gloo", init_method=meet, world_size=4, rank=2 * machine + local,
        timeout=timedelta(seconds=60),
    )
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 3 and not __import__("os").path.exists("failed"):
        open("failed", "w").close()
        raise RuntimeError("this machine fails once")
    dist.barrier()
    if dist.get_rank() == 0:
        print("ranks", int(total), flush=True)

if __name__ == "__main__":
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    assert given["--num-gpus"] == given["--num-machines"] == "2"
    mp.spawn(rank, (int(given["--machine-rank"]), given["--dist-url"]), nprocs=2)
"""


@pytest.mark.slow
def test_torchrun(repository: Path) -> None:
    """Two real torchruns: four ranks, started by each machine's part as the trainers start theirs,
    meet in torchrun's store; a part that fails is started again, and so is the other machine's."""
    (repository / "projects/detection").mkdir()
    (repository / "projects/detection/train_net.py").write_text(RANK)
    port = free_port()
    names = {"NODES": "2", "GPUS": "2", "FIRST": f"127.0.0.1:{port}", "LOCAL": "127.0.0.1"}
    names |= {"RESTARTS": "2", "PYTHON": sys.executable}
    command = ["bash", "projects/machines/torchrun.sh", "yaml"]
    runs = [Machine(f"machine{number}", command, repository, **names) for number in (0, 1)]
    finish(runs)
    assert (repository / "failed").exists()
    assert sum(run.output().count("ranks 4") for run in runs) == 1
