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

TASKS = [Task(f"task{number}", "picture", ()) for number in range(20)]


@pytest.mark.parametrize(
    ("found", "given", "device", "gpus", "workers"),
    [
        ("cuda:1", [], "cuda", 1, 2),  # by itself, where there is one
        ("cuda:0", ["--threads", "1"], "cuda", 1, 3),
        ("cpu", [], "cpu", 0, 7),
        ("cpu", ["--threads", "8"], "cpu", 0, 1),
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
    ray = fake_ray(found, monkeypatch)
    job = command._job(parsed("mvitv2_tiny_in1k", "--threads", "2", *given))
    assert list(extract_on_ray(job, TASKS)) == [{"rows": 1}]
    asked = ray.data.from_items.return_value.map_batches.call_args.kwargs
    assert asked["num_gpus"] == gpus and asked["num_cpus"] == job.settings.threads
    assert asked["fn_constructor_args"][0].options.device == device
    assert ray.data.ActorPoolStrategy.call_args.kwargs == {"size": workers}


@pytest.mark.parametrize(
    ("found", "threads", "workers"), [("cpu", 11, None), ("cuda", 7, None), ("cpu", 8, 2)]
)
def test_no_node_has_room(
    found: str, threads: int, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait for ever, though the nodes have as many CPUs together."""
    fake_ray(found, monkeypatch)
    job = command._job(parsed("mvitv2_tiny_in1k", "--threads", str(threads)))
    with pytest.raises(ValueError, match="have no room: the cluster's 3 nodes, of up to 10 CPUs"):
        list(extract_on_ray(job, TASKS, workers=workers))


def fake_ray(found: str, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Stands for Ray with nodes of CPUs, of GPUs too, of neither, and one that died; on a machine
    with a device."""
    ray = MagicMock()
    ray.is_initialized.return_value = False
    ray.exceptions.RayError = RuntimeError
    ray.nodes.return_value = [
        {"Alive": True, "Resources": {"CPU": 10.0}},
        {"Alive": True, "Resources": {"CPU": 5.0, "GPU": 3.0}},
        {"Alive": True, "Resources": {"memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    rows = ray.data.from_items.return_value.map_batches.return_value.iter_rows
    rows.return_value = [{"known": json.dumps({"rows": 1})}]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    monkeypatch.setattr(Options, "torch_device", property(lambda options: torch.device(found)))
    return ray


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
