"""The toy that measures explanations: its pictures, its measures, and what the page says of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from projects.explain import toy


def test_pictures_and_measures() -> None:
    """Boxes hold the shapes; a map that is the box points at it, one beside it does not."""
    pictures = toy.draw(np.random.default_rng(0), 8)
    again = toy.draw(np.random.default_rng(0), 8)
    assert torch.equal(pictures.images, again.images) and pictures.images.abs().max() <= 1
    centres = torch.arange(16) / 16 + 0.5 / toy.SIZE
    x1, y1, x2, y2 = (side[:, None] for side in pictures.boxes.unbind(1))
    across, down = (centres > x1) & (centres < x2), (centres > y1) & (centres < y2)
    inside = (down[:, :, None] & across[:, None]).double()
    assert (
        toy.on_object(inside, pictures.boxes) == 1
        and toy.on_object(1 - inside, pictures.boxes) == 0
    )
    held, area = toy.share(torch.ones(8, 16, 16), pictures.boxes)
    assert held == pytest.approx(area) and 0.05 < area < 0.2
    assert toy.share(inside, pictures.boxes)[0] > 0.7
    assert toy.build("class token").config.cls_token and not toy.build("mean").config.cls_token


def test_measuring_runs() -> None:
    results = toy.measure(toy.train("class token", 1, quiet=True), count=2)
    assert results["pictures"] == 2 and len(results) == 2 + 16 + 8 + 3


@pytest.mark.slow
def test_what_the_page_says() -> None:
    """Some minutes of training on one core; docs/explain.md has the figures measured."""
    held = toy.measure(toy.train("class token", 1000, quiet=True))
    assert held["top1"] > 0.9 and held["attention_block2_on_object"] > 0.95
    assert held["attention_block2_share"] > 5 * held["area_share"]
    # Rollout differs most between trainings.
    assert held["rollout_on_object"] > 3 * held["area_share"]
    assert held["taylor_stage1_on_object"] > 0.9
