"""Forms of operations by name, and the definitions in the arguments that tests have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from torch import Tensor

from mvitv2_core import ops, plain
from mvitv2_core.fast import attention_chunked, mlp_recompute
from mvitv2_core.rel_pos import rel_pos_terms


@contextlib.contextmanager
def forced(
    logits: int | None = None, tokens: int | None = None, **forms: str | None
) -> Iterator[None]:
    """Each operation by the form that is named for it, wherever that can run.

    Args:
        logits, tokens: what a chunk of attention and of the MLP holds; None leaves the default.
        forms: ``attention="folded"`` and the like; None leaves the choice.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "REFERENCE", False)
        named = {operation: name for operation, name in forms.items() if name is not None}
        for operation, name in named.items():
            assert name in [form.name for form in ops.FORMS[operation]]
        patch.setattr(ops, "FORCED", named)
        if logits:
            patch.setattr(attention_chunked, "CPU_LOGITS", logits)
        if tokens:
            patch.setattr(mlp_recompute, "CHUNK_TOKENS", tokens)
        yield


def attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor | None],
    q_thw: Sequence[int],
    k_thw: Sequence[int],
    cls_token: bool = False,
    add_q: bool = False,
    windows: plain.Windows | None = None,
) -> Tensor:
    """``ops.attention`` by the definition, position terms included."""
    axes = [axis for axis, table in enumerate(tables) if table is not None]
    rows = [
        None if table is None else ops.axis_rows(table, *sizes)
        for table, *sizes in zip(tables, q_thw, k_thw, *(windows or ()), strict=True)
    ]
    terms = rel_pos_terms(q[:, int(cls_token) :], rows, q_thw)
    return plain.attention(q, k, v, terms, axes, q_thw, k_thw, cls_token, add_q, windows)
