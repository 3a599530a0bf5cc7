"""PySlowFast's YAML files without PySlowFast: what ``mvitv2 inflate --config`` reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from mvitv2_slowfast import config_file
from mvitv2_slowfast.config import HONOURED, read_config
from mvitv2_slowfast.config_file import DEFAULTS, read_config_file, read_yaml
from tests.slowfast_cfg import DEFAULTS as UPSTREAM
from tests.slowfast_cfg import RECIPES, model_cfg


@pytest.fixture(autouse=True)
def without_pyslowfast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "connect", lambda: None)


def test_defaults_are_upstreams() -> None:
    for node, values in DEFAULTS.items():
        assert values == {key: UPSTREAM[node][key] for key in values}
    assert set(DEFAULTS["MVIT"]) == HONOURED


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes(path: Path) -> None:
    """Each gives what it gives through fvcore's own reader."""
    loaded = CfgNode.load_yaml_with_base(str(path))
    assert read_yaml(path) == loaded
    assert read_config_file(path) == read_config(model_cfg(loaded))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list\n", "no mapping"),
        ("MVIT: {MODE: avg}\n", "MVIT.MODE must be 'conv'"),
        ("_BASE_: none.yaml\n", "none.yaml"),
        ("MVIT: {DEPTH: \n", "DEPTH"),
        ("MVIT: !!python/object/apply:os.getcwd []\n", "constructor"),
    ],
)
def test_bad_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config_file(tmp_path / "a.yaml")
    assert str(tmp_path / "a.yaml") in str(caught.value)
