"""train_net.py with ``train.sharded=True``: two ranks as one, resumed, and made plain again."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
pytest.importorskip("shapely", reason="install shapely to run (crops of polygons): make setup")
from detectron2.config import LazyConfig, instantiate

from projects.detection.find_tools import find_tool
from tests.d2.running import ROOT
from tests.machines import Machine, check_resumed, curve, finish, free_port, lose_one

STEPS = 8
CONFIG = ["--config-file", str(ROOT / "tests/d2/sharded_config.py")]
RECIPE = "mask_rcnn_mvitv2_t_3x.py"
H = "cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x.py"


def environment(datasets: Path, recipe: str = RECIPE) -> dict[str, str]:
    return {"DETECTRON2_DATASETS": str(datasets), "RECIPE": recipe}


def start(
    folder: Path, datasets: Path, *options: str, recipe: str = RECIPE, sharded: bool = True
) -> list[Machine]:
    """Two machines of one rank each: sharded, or detectron2's own tool with DDP."""
    meet = f"tcp://127.0.0.1:{free_port()}"
    ours, switch = ROOT / "projects/detection/train_net.py", ["train.sharded=True"]
    tool = ours if sharded else find_tool("lazyconfig_train_net.py")
    return [
        Machine(
            f"machine{number}",
            [
                *(sys.executable, str(tool), *CONFIG, "--resume", "--num-machines", "2"),
                *("--machine-rank", str(number), "--dist-url", meet),
                *(*(switch if sharded else []), f"train.output_dir={folder}/out", *options),
            ],
            folder,
            **environment(datasets, recipe),
        )
        for number in range(2)
    ]


def one(folder: Path, datasets: Path, *options: str, recipe: str = RECIPE) -> None:
    """detectron2's own tool, on one process."""
    tool = str(find_tool("lazyconfig_train_net.py"))
    command = [sys.executable, tool, *CONFIG, *options, f"train.output_dir={folder}/out"]
    finish([Machine("one", command, folder, **environment(datasets, recipe))])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "out/model_final.pth", weights_only=True)["model"]


def detections(folder: Path) -> list[dict]:
    (file,) = folder.glob("**/coco_instances_results.json")
    found = json.loads(file.read_text())
    return sorted(found, key=lambda entry: (entry["image_id"], -entry["score"], entry["bbox"]))


def check_as_ddp(folder: Path, ddp: Path, steps: int) -> None:
    """Losses on each rank, and weights, bit by bit: halves add up alike in any order."""
    for rank in range(2):
        found = curve(folder, rank)
        assert [step for step, _ in found] == list(range(steps)) and found == curve(ddp, rank)
    ours, expected = weights(folder), weights(ddp)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in expected.items())


def check_as_one(folder: Path, whole: Path) -> None:
    """Mean losses are one process's with the joint batch, to rounding.

    For three steps: later ones may take another of two proposals that score alike.
    """
    joint, ranks = dict(curve(whole, 0)), [dict(curve(folder, rank)) for rank in range(2)]
    assert joint[0] > 1.02 * joint[max(joint)]  # it moves
    for step in range(3):
        mean = (ranks[0][step] + ranks[1][step]) / 2
        assert abs(mean - joint[step]) < 1e-6 * joint[step], (step, mean, joint[step])


@pytest.mark.slow
def test_two_ranks_are_one_and_resume(datasets: Path, tmp_path: Path) -> None:
    """As DDP on two ranks, and as one process; detections of 5 images; a machine is lost, and the
    run goes on; the shards' weights, read by one process, are model_final.pth's."""
    whole, sharded, lost = tmp_path / "whole", tmp_path / "sharded", tmp_path / "lost"
    one(whole, datasets)
    finish(start(tmp_path / "ddp", datasets, "train.eval_period=0", sharded=False))
    finish(start(sharded, datasets))
    check_as_ddp(sharded, tmp_path / "ddp", STEPS)
    check_as_one(sharded, whole)
    kept = {path.name for path in (sharded / "out").iterdir() if path.is_dir()}
    assert kept >= {"model_0000005", "model_0000007"} and "model_0000003" not in kept

    lose_one(start(lost, datasets), lambda: len(curve(lost, 0)) == 5)
    assert (lost / "out/last_checkpoint").read_text() == "model_0000003"
    finish(start(lost, datasets))
    check_resumed(lost, sharded, ranks=2, steps=STEPS)
    assert all(torch.equal(weights(lost)[n], weight) for n, weight in weights(sharded).items())

    from mvitv2_d2.sharded import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE", RECIPE)
        plain = instantiate(LazyConfig.load(CONFIG[1]).model)
    state = load(sharded / "out/model_0000007", plain).state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights(sharded).items())

    other = tmp_path / "evaluated"
    final = f"train.init_checkpoint={sharded}/out/model_final.pth"
    one(other, datasets, "--eval-only", final)
    ours, expected = detections(sharded), detections(other)
    assert len({entry["image_id"] for entry in ours}) == 5 and len(ours) > 20
    assert ours == expected


@pytest.mark.slow
def test_h(datasets: Path, tmp_path: Path) -> None:
    """The recipe of H, small: cascade heads, batch norms over ranks, activation checkpointing."""
    options = ("train.max_iter=4", "train.eval_period=0")
    finish(start(tmp_path / "ddp", datasets, *options, recipe=H, sharded=False))
    finish(start(tmp_path / "sharded", datasets, *options, recipe=H))
    check_as_ddp(tmp_path / "sharded", tmp_path / "ddp", 4)


def test_memory_of_h() -> None:
    """docs/machines.md computes bytes for each GPU from these counts."""
    path = ROOT / "projects/detection/configs" / H
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(path)).model)
    count = sum(p.numel() for p in model.parameters())
    blocks = [sum(p.numel() for p in b.parameters()) for b in model.backbone.bottom_up.blocks]
    page = (ROOT / "docs/machines.md").read_text()
    rest, largest = count - sum(blocks), max(blocks)
    assert f"{count / 1e6:.1f} M" in page and f"{rest / 1e6:.1f} M" in page
    assert f"{largest / 1e6:.1f} M" in page
    for gpus in (1, 8, 16):
        kept = 16 * count / gpus  # weights, gradients and AdamW's two moments in float32
        # Beside them, gathered weights and their gradients: of the rest, and of two blocks.
        gathered = 8 * (rest + 2 * largest) if gpus > 1 else 0
        assert f"| {gpus} | {kept / 1e9:.1f} | {gathered / 1e9:.1f} |" in page, (kept, gathered)


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    from mvitv2_d2.sharded import Shards

    model = torch.nn.Linear(2, 2)
    shards = Shards(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path)
    with torch.no_grad():
        model.bias[1] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinite values in bias"):
        shards.save("model_0000001", None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("done", "kept"), [(4, True), (3, False)])
def test_final_weights_come_before_the_last_evaluation(
    done: int, kept: bool, tmp_path: Path
) -> None:
    """And not at all after an error in training."""
    from types import SimpleNamespace

    from mvitv2_d2.sharded import SaveFinal

    hook = SaveFinal(lambda: torch.nn.Linear(2, 2), tmp_path)
    hook.trainer = SimpleNamespace(iter=done, max_iter=4)
    hook.after_train()
    assert (tmp_path / "model_final.pth").exists() == kept


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.sharded=False", "lazyconfig_train_net.py does the rest"),
        ("train.sharded=1", "train.sharded"),
        ("train.sharded=True", "number of processes"),
        ("train.amp.enabled=True", "train.amp.enabled"),
        ("optimizer.accumulate=2", "optimizer.accumulate"),
        ("optimizer.ema_decay=0.9", "optimizer.ema_decay"),
    ],
)
def test_refused(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectron2.engine import default_argument_parser

    from projects.detection.train_net import main

    toy = str(ROOT / "projects/detection/configs/toy_mask_rcnn_mvitv2.py")
    options = [f"train.output_dir={tmp_path}", "train.sharded=True", option]
    arguments = default_argument_parser().parse_args(["--config-file", toy, *options])
    monkeypatch.chdir(tmp_path)
    # detectron2 imports setuptools, which minds a distutils that a test before this imported.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    with pytest.raises(ValueError, match=message):
        main(arguments)
    assert os.listdir(tmp_path) == [] or option != "train.sharded=False"
