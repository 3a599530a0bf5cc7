"""The benchmark: what it compares, what it counts, how it copes with failures, what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from projects.benchmark import bench, cases, report, tables, work
from projects.benchmark.cases import CASES, CHECKPOINTING, TARGETS, Case, builders
from tests.slowfast.launch import needs_pyslowfast

BENCH = Path(bench.__file__)
ARGS = Namespace(device="cpu", dtype="fp32", threads=1, repeats=1, warmup=0, runs=2)
ARGS.compile = ARGS.memory = False
TINY = Case("image", "T", 1, (32, 32))


def test_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "find_spec", lambda name: None)
    monkeypatch.delenv("PYSLOWFAST_ROOT", raising=False)
    lines = {key: (list(builders(case)[0]), builders(case)[1]) for key, case in TARGETS.items()}
    assert lines["image-T"] == (["ours"], ["timm: not measured, install timm"])
    assert lines["detection-512"] == ([], ["detection: not measured, install detectron2"])
    assert lines["video-S"] == (
        ["ours"],
        [
            "torchvision: not measured, install torchvision",
            "PySlowFast: not measured, set PYSLOWFAST_ROOT",
        ],
    )


def test_who_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "find_spec", lambda name: True)
    monkeypatch.setenv("PYSLOWFAST_ROOT", "anywhere")
    who = {key: list(builders(case)[0]) for key, case in CASES.items()}
    assert who["video-S"] == ["ours", "torchvision", "PySlowFast"]
    assert who["detection-1024"] == ["ours", CHECKPOINTING, "detectron2"]
    assert who["detection-512"] == ["ours", "detectron2"]
    assert who["detection-global"] == ["ours"]
    assert who["image-B"] == ["ours", "timm"]
    long = Case("video", "S", 1, (32, 224, 224))
    assert list(builders(long)[0]) == ["ours", "PySlowFast"]


@pytest.mark.parametrize(("limit", "steps"), [(1e9, 5), (0.0, 4)])
def test_long_rounds_warm_up_once(
    limit: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two warm-ups and three repeats of each peer, in turns; of a long round one warm-up."""
    order: list[str] = []
    monkeypatch.setattr(work, "LONG_ROUND", limit)
    monkeypatch.setattr(work, "prepare", lambda case, name, mode, args: name)
    monkeypatch.setattr(work, "step", lambda name, *_: order.append(name))
    args = Namespace(**{**vars(ARGS), "repeats": 3, "warmup": 2})
    times = work.time_case(TINY, ["a", "b"], "inference", args)
    assert order == ["a", "b"] * steps
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


@needs_pyslowfast
def test_pyslowfast_is_the_same_model() -> None:
    """Same names and shapes, and with the same weights the same probabilities."""
    case = Case("video", "S", 1, (4, 64, 64))
    torch.manual_seed(0)
    ours, peer = (builders(case)[0][name]().eval() for name in ("ours", "PySlowFast"))
    ours.load_state_dict(peer.model.state_dict(), strict=True)
    clip = case.input("cpu")
    with torch.no_grad():
        error = (ours(clip).softmax(dim=1) - peer(clip)).abs().max()
    assert error < 1e-6


def test_limit_and_matrix() -> None:
    """From the account: without norms; training is three products for one."""
    image = TARGETS["image-T"]
    assert image.flops("inference") == pytest.approx(2 * 4 * 4.676957952e9)
    assert image.flops("training") == 3 * image.flops("inference")
    pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    # Second block: 256 x 256 queries and as many keys, two heads, float32.
    assert CASES["detection-global"].matrix_mib() == 2 * 256**4 * 4 / 2**20


def test_profile_by_kind() -> None:
    kinds = work.profile(TINY, "ours", "training", ARGS)
    assert list(kinds) == list(work.KINDS)
    for name in ("linears", "attention", "convolutions", "norms", "GELU", "copies"):
        assert kinds[name] > 0, name
    assert kinds["other"] < 0.5 * sum(kinds.values())


def test_kinds_of_operators() -> None:
    def event(name: str, above: object = None) -> SimpleNamespace:
        return SimpleNamespace(name=name, cpu_parent=above)

    names = {
        "aten::addmm": "linears",
        "mkldnn::_linear_pointwise": "linears",
        "_NormLinearsBackward": "linears",
        "aten::bmm": "attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "aten::native_layer_norm_backward": "norms",
        "aten::mkldnn_convolution": "convolutions",
        "aten::gelu_backward": "GELU",
        "aten::max_pool2d_with_indices": "max pooling",
        "aten::copy_": "copies",
        "aten::add_": "sums and products",
        "autograd::engine": "other",
    }
    assert {name: work.kind(event(name)) for name in names} == names
    assert work.kind(event("aten::copy_", event("aten::add", event("_Chunked")))) == "attention"


def test_failures_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One peer out of memory, another out of time in company: ours is still measured."""
    args = Namespace(**vars(ARGS), scaling=False, timeout=9.0)
    monkeypatch.setattr(bench, "builders", lambda case: (dict.fromkeys("abc"), []))

    def spawn(job: object, task: str, who: list[str], args: object) -> object:
        if who == ["a"] and task == "memory":
            return {"error": "out of memory"}
        if task == "memory":
            return {"peak_mib": 5.0, "seconds": 1.0}
        return {"error": "more than 9 s"} if "b" in who else {name: [2.0, 4.0] for name in who}

    monkeypatch.setattr(bench, "spawn", spawn)
    rows = bench.measure(("image-T", {}, "inference"), args, 1e9)
    assert [(r["who"], r.get("error"), r["peak_mib"], r.get("median")) for r in rows] == [
        ("a", "out of memory", None, None),
        ("b", "more than 9 s", 5.0, None),
        ("c", None, 5.0, 3.0),
    ]
    assert rows[2]["runs"] == [3.0, 3.0]


def test_speed_is_compared_run_by_run() -> None:
    """A run in which the machine was slow does not count against one in which it was fast."""
    facts = {"case": "x", "mode": "training", "peak_mib": 8.0, "limit": 1.0}
    rows = [
        {**facts, "who": "ours", "runs": [1.0, 10.0, 2.0], "median": 2.0},
        {**facts, "who": "peer", "runs": [2.0, 10.0, 3.0], "median": 3.0},
    ]
    peer = report.ratios(rows)[1]
    assert peer["speed_of_ours"] == 1.5 and peer["speed_range"] == [1.0, 2.0]
    assert report.speed_text(peer) == "1.50x (1.00 to 2.00)"


def test_memory_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No time is taken, and tables and pictures say nothing of time."""
    asked = []

    def spawn(job: object, task: str, who: list[str], args: Namespace) -> dict[str, float]:
        asked.append(task)
        return {"peak_mib": 100.0 if who == ["ours"] else 200.0, "seconds": 99.0}

    monkeypatch.setattr(bench, "spawn", spawn)
    monkeypatch.setattr(bench, "builders", lambda case: ({"ours": None, "timm": None}, []))
    args = Namespace(**{**vars(ARGS), "memory": True, "scaling": True})
    jobs = [("image-T", {"size": (side, side)}, "inference") for side in (32, 64)]
    rows = [row for job in jobs for row in bench.measure(job, args, 1e9)]
    text = report.write(rows, {"cpu": "c"}, [], tmp_path, True)
    assert set(asked) == {"memory"} and not any("median" in row for row in rows)
    assert "0.50x" in text and (tmp_path / "scaling.png").exists()
    lines = tables.growth({"rows": report.ratios(rows)})
    assert len(lines) == 3 and lines[1][2] == "100 MiB" and lines[1][3] == ""


def test_time_runs_out() -> None:
    args = Namespace(**vars(ARGS), timeout=0.2)
    job = ("image-T", {"size": (32, 32), "batch": 1}, "inference")
    assert bench.spawn(job, "memory", ["ours"], args) == {"error": "more than 0 s"}


def test_memory_is_bounded() -> None:
    """In a process of its own: a tensor larger than the machine's memory is an error there."""
    code = (
        "from projects.benchmark import work; import torch; work.bound_memory(); torch.ones(2**44)"
    )
    root = BENCH.parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "allocate memory" in done.stderr


def sweep_rows() -> list[dict]:
    rows = []
    for side in (256, 512, 1024):
        facts = {"case": f"detection {side}", "kind": "detection", "size": [side, side]}
        facts |= {"mode": "inference", "windows": True, "flops": 2.0 * side**2, "limit": 0.1}
        facts |= {"matrix_mib": side**4 / 2**30}
        times = {"min": 1.0, "max": 2.0, "median": 1.5 * (side / 512) ** 2}
        times["runs"] = [times["median"]]
        rows.append({**facts, "who": "ours", "peak_mib": side**2 / 2**12, **times})
        if side < 1024:
            times["median"] *= 2
            times["runs"] = [times["median"]]
            rows.append({**facts, "who": "detectron2", "peak_mib": side**2 / 2**11, **times})
        else:
            error = {"error": "out of memory", "peak_mib": None}
            rows.append({**facts, "who": "detectron2", **error})
    return rows


def test_sweep_is_written(tmp_path: Path) -> None:
    text = report.write(sweep_rows(), {"cpu": "x"}, ["a: not measured"], tmp_path, True)
    lines = [line.split() for line in text.splitlines()]
    assert ["a:", "not", "measured"] in lines
    # From 512 on: time and memory per pixel are constant, the matrix per pixel grows fourfold.
    expected = ["1.00x", "1.00x", "1.00x", "4.00x"]
    assert ["detection", "inference", "ours", "512x512", "1024x1024", *expected] in lines
    assert next(line[:7] for line in lines if line[:2] == ["detection", "1024"]) == [
        "detection",
        "1024",
        "inference",
        "ours",
        "6.0000",
        "1.0000-2.0000",
        "256",
    ]
    assert any("out of memory" in line for line in text.splitlines())
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "| 2.00x | 0.50x |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow  # six processes, each importing torch
def test_benchmark(tmp_path: Path) -> None:
    """On a tiny input: rows for ours, ratios for peers, tables and a plot, and a profile."""
    pytest.importorskip("timm", reason="install timm to run: make setup")
    command = [sys.executable, str(BENCH), "--cases", "image-T", "--batch", "1", "--size", "64"]
    command += ["64", "--threads", "1", "--out", str(tmp_path)]
    quick = ["--repeats", "1", "--warmup", "1", "--runs", "2"]
    done = subprocess.run([*command, *quick], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[2/2, " in done.stdout and "one big matrix product: " in done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(r["mode"], r["who"]) for r in rows] == [
        ("inference", "ours"),
        ("inference", "timm"),
        ("training", "ours"),
        ("training", "timm"),
    ]
    assert all(r["median"] > 0 and r["peak_mib"] > 0 and r["limit"] > 0 for r in rows)
    ours, timm = rows[0], rows[1]
    speeds = [theirs / mine for theirs, mine in zip(timm["runs"], ours["runs"], strict=True)]
    assert len(speeds) == 2 and timm["speed_range"] == pytest.approx([min(speeds), max(speeds)])
    assert timm["speed_of_ours"] == pytest.approx(sum(speeds) / 2)
    assert ours["over_limit"] == pytest.approx(ours["median"] / ours["limit"])
    assert "| image T, 1 x 64x64 | inference | timm |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    command += ["--profile", "--modes", "inference"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| linears | " in (tmp_path / "profile.md").read_text()
