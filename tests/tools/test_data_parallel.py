"""Many files at once, one of which kills its process."""

from __future__ import annotations

import pytest

from mvitv2_tools.data.parallel import FEW, map_files
from tests.tools.fragile import crashed, look


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    pytest.importorskip("tqdm", reason="needs tqdm: pip install tqdm")
    items = list(range(100, 100 + 2 * FEW))
    assert map_files(look, items, crashed, workers, "numbers") == [2 * item for item in items]


def test_a_dead_process_loses_one_item_alone() -> None:
    pytest.importorskip("tqdm", reason="needs tqdm: pip install tqdm")
    items = list(range(FEW + 1))
    expected = [-17 if item == 17 else 2 * item for item in items]
    assert map_files(look, items, crashed, 2, "numbers") == expected
