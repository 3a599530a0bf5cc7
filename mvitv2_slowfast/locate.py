"""Where PySlowFast is. Looks at files only: nothing of PySlowFast is imported here."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT_VARIABLE = "PYSLOWFAST_ROOT"
HOW_TO_GET = (
    "git clone https://github.com/facebookresearch/SlowFast, install what it needs "
    f"(pip install -e '.[slowfast]' here: docs/video.md), and set {ROOT_VARIABLE} to that folder"
)


class PySlowFastError(RuntimeError):
    """PySlowFast cannot be used; the message says why and what to do."""


def find_root() -> Path | None:
    """Folder that holds PySlowFast's ``slowfast`` package; None where there is no PySlowFast.

    ``PYSLOWFAST_ROOT`` wins over an importable ``slowfast``, and is put on ``sys.path`` (first,
    so that an older ``slowfast`` elsewhere does not hide it).

    Raises:
        PySlowFastError: ``PYSLOWFAST_ROOT`` is not a checkout, or what is found is the release
            1.0 of January 2020, which has no registry to plug into.
    """
    variable = os.environ.get(ROOT_VARIABLE, "")
    if variable:
        root = Path(variable).expanduser().resolve()
        if not (root / "slowfast" / "__init__.py").is_file():
            raise PySlowFastError(
                f"{ROOT_VARIABLE}={variable} holds no slowfast/__init__.py: it must be the root "
                f"folder of a PySlowFast checkout. To get one: {HOW_TO_GET}."
            )
    else:
        spec = importlib.util.find_spec("slowfast")
        if spec is None or not spec.origin:
            return None
        root = Path(spec.origin).parents[1]
    registry = root / "slowfast" / "models" / "build.py"
    if not registry.is_file() or "MODEL_REGISTRY" not in registry.read_text():
        raise PySlowFastError(
            f"slowfast in {root} is too old: it has no MODEL_REGISTRY. The packages slowfast and "
            f"pyslowfast 1.0 on PyPI are from January 2020. Use the repository instead: "
            f"{HOW_TO_GET}."
        )
    if variable and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return root
