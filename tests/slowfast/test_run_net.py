"""What the launcher looks at before it hands a config to PySlowFast, in process."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mvitv2_slowfast import run_net
from tests.slowfast.launch import needs_pyslowfast

pytestmark = needs_pyslowfast


def launched(**changes: Any) -> list[Any]:
    """The configs that come to PySlowFast's ``launch_job``, of its defaults with changes."""
    from slowfast.config.defaults import get_cfg

    cfg, found = get_cfg(), []
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    run_net._launch(lambda cfg, **rest: found.append(cfg), cfg, init_method="", func=None)
    return found


@pytest.mark.parametrize("asked", [False, True])
def test_cublas_is_set_before_a_gpu_is_used(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PySlowFast runs the model, to count FLOPs, before it makes the optimizer."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert len(launched(MVITV2__DETERMINISTIC=asked)) == 1
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == asked


@pytest.mark.parametrize(("gpus", "batch"), [(1, 8), (4, 8), (8, 4)])
def test_ava_is_tested_on_a_clip_for_each_gpu(
    gpus: int, batch: int, capsys: pytest.CaptureFixture
) -> None:
    """PySlowFast says so by a bare assertion, after the training."""
    keys = {"DETECTION__ENABLE": True, "NUM_GPUS": gpus, "TEST__BATCH_SIZE": batch}
    with pytest.raises(SystemExit):
        launched(**keys)
    said = capsys.readouterr().err
    assert said.endswith(f"got TEST.BATCH_SIZE {batch} and NUM_GPUS {gpus}\n")
    for fits in ({"NUM_GPUS": batch}, {"NUM_GPUS": 0}, {"TEST__ENABLE": False}):
        assert len(launched(**{**keys, **fits})) == 1
    assert len(launched(**{**keys, "DETECTION__ENABLE": False})) == 1
