"""Max pools of clips in training that must repeat."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import plain


def max_pool_skip(x: Tensor, thw: Sequence[int], stride: Sequence[int], cls_token: bool) -> Tensor:
    """``plain.max_pool_skip`` of (B, N, C) tokens of a clip: of each frame, then over time.

    PyTorch's max pool over three axes has no deterministic gradient on a GPU, that over two has.
    """
    row, x = plain.split_cls_token(x, cls_token)
    # (B, N, C) -> (B * T, H * W, C) -> (B * T, H' * W', C)
    x = x.unflatten(1, (thw[0], -1)).flatten(0, 1)
    x = plain.max_pool_skip(x, thw[1:], stride[1:], False)
    # (B * T, H' * W', C) -> (B, T * H' * W', C) -> (B, T' * H' * W', C)
    cells = x.shape[1]
    x = x.unflatten(0, (-1, thw[0])).flatten(1, 2)
    x = plain.max_pool_skip(x, (thw[0], cells), (stride[0], 1), False)
    return plain.join_cls_token(row, x)
