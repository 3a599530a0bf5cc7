"""Hybrid window attention (paper, section 4.3): blocks that attend inside windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from mvitv2_core.attention import MultiScaleAttention, NormLayer
from mvitv2_core.config import MViTConfig
from mvitv2_core.spec import BlockSpec, check_count


@dataclass(frozen=True)
class WindowBlockSpec(BlockSpec):
    """A block that attends inside windows.

    Args:
        window_size: width of a window in tokens of the block's input; 0 attends globally.

    Raises:
        ValueError: a window that its strides do not divide. Windows of q and of kv would not
            cover the same tokens, and for many input sizes not even be equally many.
    """

    window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window_size", self.window_size)
        for stride in {*self.stride_q, *self.stride_kv} if self.window_size else ():
            if self.window_size % stride:
                raise ValueError(
                    f"window_size must be a multiple of the q and kv strides of its block: "
                    f"window_size={self.window_size}, stride_q={self.stride_q}, "
                    f"stride_kv={self.stride_kv}"
                )

    def attended(self, q_thw: Sequence[int], k_thw: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Queries with those that fill the last windows, and one window of keys."""
        if not self.window_size:
            return super().attended(q_thw, k_thw)
        q_window = [self.window_size // s for s in self.stride_q]
        filled = prod(-(-n // w) * w for n, w in zip(q_thw, q_window, strict=True))
        return filled, tuple(self.window_size // s for s in self.stride_kv)


class WindowAttention(MultiScaleAttention):
    """Pooling attention whose queries see the keys of their own window.

    Partition happens after pooling, and the zeros that fill the last windows take part in the
    softmax: the published box AP depends on both (detectron2's modeling/backbone/mvit.py).
    """

    def __init__(self, spec: WindowBlockSpec, config: MViTConfig, norm_layer: NormLayer) -> None:
        super().__init__(spec, config, norm_layer)
        self.q_window = tuple(spec.window_size // s for s in spec.stride_q)
        self.kv_window = tuple(spec.window_size // s for s in spec.stride_kv)

    @property
    def windows(self) -> tuple[Sequence[int], Sequence[int]] | None:
        """Sizes of the windows of q and of kv; None in blocks that attend globally."""
        return (self.q_window, self.kv_window) if self.q_window[0] else None
