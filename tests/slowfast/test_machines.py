"""PySlowFast's unmodified run_net.py on two "machines" of two gloo ranks each, one killed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from tests.killing import same
from tests.machines import Machine, check_resumed, curve, finish, free_port, lose_one
from tests.slowfast import toy
from tests.slowfast.launch import needs_pyslowfast, python, stats, write_config

pytestmark = needs_pyslowfast
EPOCHS, STEPS = 3, 3  # 12 clips on four ranks, one a step each
CHANGES = {
    "MVIT": {"DROPPATH_RATE": 0.0},
    "TRAIN": {"BATCH_SIZE": 2},  # of a machine
    "SOLVER": {"MAX_EPOCH": EPOCHS, "BASE_LR_SCALE_NUM_SHARDS": True},
    "NUM_GPUS": 2,
    "DIST_BACKEND": "gloo",
}
DRIVER = [sys.executable, "-m", "tests.slowfast.machine_driver"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinetics") / "data"
    toy.make_kinetics(folder, val=8, test=3)
    return folder


def start(folder: Path, data: Path) -> list[Machine]:
    """The documented command on each machine; both see ``folder``."""
    config = write_config(folder, CHANGES, data=data)
    meet = f"tcp://127.0.0.1:{free_port()}"
    shards = ["--num_shards", "2", "--init_method", meet]
    return [
        Machine(
            f"machine{shard}",
            [*DRIVER, "--cfg", str(config), "--shard_id", str(shard), *shards],
            folder,
        )
        for shard in range(2)
    ]


def final(folder: Path) -> dict:
    path = folder / f"out/checkpoints/checkpoint_epoch_{EPOCHS:05d}.pyth"
    content = torch.load(path, weights_only=True)
    return {key: content[key] for key in ("epoch", "model_state", "optimizer_state")}


@pytest.mark.slow
def test_lost_machine_and_evaluation(data: Path, tmp_path: Path) -> None:
    """The resumed curve is the uninterrupted one's; validation and the test, whose 18 views four
    ranks cannot share evenly, give what one process gives."""
    reference, lost = tmp_path / "reference", tmp_path / "lost"
    output = finish(start(reference, data))
    lose_one(start(lost, data), lambda: len(curve(lost, 0)) == STEPS + 2)
    names = [path.name for path in (lost / "out/checkpoints").glob("check*")]
    assert names == ["checkpoint_epoch_00001.pyth"]
    assert "Load from last checkpoint" in finish(start(lost, data))
    check_resumed(lost, reference, ranks=4, steps=EPOCHS * STEPS)
    assert same(final(lost), final(reference))

    alone = write_config(
        tmp_path / "alone",
        CHANGES,
        {"NUM_GPUS": 0, "TRAIN": {**CHANGES["TRAIN"], "AUTO_RESUME": False}},
        {"SOLVER": {**CHANGES["SOLVER"], "MAX_EPOCH": 0}},  # one validation
        data=data,
    )
    file = f"{reference}/out/checkpoints/checkpoint_epoch_{EPOCHS:05d}.pyth"
    files = ["TRAIN.CHECKPOINT_FILE_PATH", file, "TEST.CHECKPOINT_FILE_PATH", file]
    files += ["TRAIN.CHECKPOINT_EPOCH_RESET", "True"]
    command = [sys.executable, "-m", "mvitv2_slowfast.run_net", "--cfg", str(alone), "--opts"]
    whole = finish([Machine("alone", [*command, *files], tmp_path / "alone")])
    (ours,), (theirs,) = stats(output, "test_final"), stats(whole, "test_final")
    assert ours == theirs
    (last,) = stats(whole, "val_epoch")
    assert stats(output, "val_epoch")[-1]["top1_err"] == last["top1_err"]


@pytest.mark.parametrize("gpus", ["0", "1"])
def test_machines_of_one_rank_are_refused(gpus: str, tmp_path: Path) -> None:
    """PySlowFast makes no process group for them: each would train alone, into one folder."""
    command = ["-m", "mvitv2_slowfast.run_net", "--cfg", str(write_config(tmp_path))]
    options = ["--num_shards", "2", "--shard_id", "0", "--opts", "NUM_GPUS", gpus]
    result = python(*command, *options, cwd=tmp_path)
    assert result.returncode == 2
    said = f"NUM_GPUS must be 2 or more with --num_shards 2, got {gpus}: "
    assert result.stderr.splitlines()[-1].startswith(said)


def test_repeated_views_count_once() -> None:
    """Three videos of two views, the second view of the last one taken by two ranks, in one batch
    and in another: sums and top-1 are those without the repetition."""
    from mvitv2_slowfast.plugin import connect

    connect()
    from slowfast.utils.meters import TestMeter

    preds = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    once, repeated = (TestMeter(3, 2, 4, 3) for _ in range(2))
    once.update_stats(preds, labels, torch.arange(6))
    for views in ([0, 5, 5, 1], [2, 3, 4, 5]):
        repeated.update_stats(preds[views], labels[views], torch.tensor(views))
    assert torch.equal(repeated.clip_count, once.clip_count)
    assert (repeated.video_preds - once.video_preds).abs().max() < 1e-6
    assert torch.equal(repeated.video_labels, once.video_labels)


def ava_batch(*keyframes: int) -> tuple:
    """As the loader gives it: keyframe k has k % 3 boxes, all equal, at second 900 + k."""
    rows = [(place, k) for place, k in enumerate(keyframes) for _ in range(k % 3)]
    boxes = torch.tensor([[place, 0.1, 0.1, 0.5, 0.5] for place, _ in rows]).reshape(-1, 5)
    metadata = torch.tensor([[7, 900 + k] for _, k in rows]).reshape(-1, 2)
    meta = {"boxes": boxes, "ori_boxes": boxes, "metadata": metadata}
    return [torch.zeros(len(keyframes), 1)], None, torch.tensor(keyframes), None, meta


@pytest.mark.parametrize("mode", ["test", "val"])
def test_repeated_keyframes_count_once(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVA's test and validation on two ranks: repeated by both in one step, and by one of them
    later."""
    from mvitv2_slowfast.plugin import connect

    connect()
    import slowfast.utils.distributed as du
    from vision.fair.slowfast.tools import test_net, train_net

    class Model(torch.nn.Linear):
        def forward(self, clips: list, boxes: torch.Tensor) -> torch.Tensor:
            return boxes.new_ones(len(boxes), 4)

    others = [ava_batch(5), ava_batch(8, 2)]

    def gather(part: tuple) -> list:
        *_, index, _, meta = others.pop(0)
        boxes = meta["ori_boxes"]
        return [part, (boxes.new_zeros(len(boxes), 4), boxes, meta["metadata"], index)]

    monkeypatch.setattr(du, "all_gather_unaligned", gather)
    meter, model, writer = Mock(), Model(1, 1), Mock()
    cfg = SimpleNamespace(NUM_GPUS=2, DETECTION=SimpleNamespace(ENABLE=True))
    batches = [ava_batch(2, 3, 4), ava_batch(8)]
    if mode == "test":
        assert test_net.perform_test(batches, model, meter, cfg) is meter
        meter.finalize_metrics.assert_called_once_with()
    else:
        train_net.eval_epoch(batches, model, meter, 3, cfg, None, writer)
        meter.log_epoch_stats.assert_called_once_with(3)
        meter.reset.assert_called_once_with()
        assert writer.add_scalars.call_args.args == ({"Val/mAP": meter.full_map},)
    calls = [call.args for call in meter.update_stats.call_args_list]
    preds, boxes, metadata = (torch.cat(rows) for rows in zip(*calls, strict=True))
    seconds = [902, 902, 904, 905, 905, 908, 908]
    assert metadata.tolist() == [[7, second] for second in seconds]
    assert preds[:, 0].tolist() == [1, 1, 1, 0, 0, 1, 1]  # the first to have it
    assert boxes.shape == (7, 5)
