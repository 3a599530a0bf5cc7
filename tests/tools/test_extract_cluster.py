"""What ``mvitv2 extract --engine ray`` asks a cluster for, without Ray."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from mvitv2_tools.extract import command
from mvitv2_tools.extract.folder import Task
from mvitv2_tools.extract.ray_engine import extract_on_ray
from mvitv2_tools.find_model import Options


@pytest.mark.parametrize(
    ("found", "given", "device", "gpus", "workers"),
    [
        ("cuda:1", [], "cuda", 1, 3),  # by itself, where there is one
        ("cuda:0", ["--threads", "8"], "cuda", 1, 2),
        ("cpu", [], "cpu", 0, 8),
    ],
)
def test_a_gpu_for_each_worker(
    found: str,
    given: list[str],
    device: str,
    gpus: int,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What this process takes is what workers are given: they would pile on the first one."""
    ray = MagicMock()
    ray.is_initialized.return_value = False
    ray.cluster_resources.return_value = {"CPU": 16, "GPU": 3}
    rows = ray.data.from_items.return_value.map_batches
    rows.return_value.iter_rows.return_value = [{"known": json.dumps({"rows": 1})}]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    monkeypatch.setattr(Options, "torch_device", property(lambda options: torch.device(found)))
    job = command._job(parsed("mvitv2_tiny_in1k", "--threads", "2", *given))
    tasks = [Task(f"task{number}", "picture", ()) for number in range(20)]
    assert list(extract_on_ray(job, tasks)) == [{"rows": 1}]
    asked = rows.call_args.kwargs
    assert asked["num_gpus"] == gpus and asked["num_cpus"] == job.settings.threads
    assert asked["fn_constructor_args"][0].options.device == device
    assert ray.data.ActorPoolStrategy.call_args.kwargs == {"size": workers}


def test_paths_for_workers_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)
    job = command._job(parsed("mvitv2_tiny", "--weights", "w.pth"))
    assert job.model == "mvitv2_tiny" and job.out == str(tmp_path / "out")
    assert job.options.weights == str(tmp_path / "w.pth")
    job = command._job(parsed("w.pth", "--weights", "mvitv2://name"))
    assert job.model == str(tmp_path / "w.pth") and job.options.weights == "mvitv2://name"


def parsed(model: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([model, "a.png", "--out", "out", *arguments])
