"""Grad-CAM and its kin of any block of a classifier, for images and clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from ..checks import is_whole, refuse
from ..features import feature_grid
from ..model import Head, MViT, MViTClassifier
from .attention import block_index

# From (B, C, *grid) tokens and the gradient there; sums over channels are what each cell says.
METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Selvaraju et al. 2017, arXiv 1610.02391, section 3; of clips for each time on the grid, as
    # PySlowFast's visualizer.
    "grad-cam": lambda tokens, slope: tokens * slope.mean(dim=(-2, -1), keepdim=True),
    # Jiang et al. 2021, LayerCAM (IEEE TIP 30), equation 5: each cell by what raises the score.
    "layer-cam": lambda tokens, slope: tokens * slope.relu(),
    # Draelos and Carin 2020, arXiv 2011.08891: each cell by its own gradient.
    "hires-cam": lambda tokens, slope: tokens * slope,
    # Gradient times the difference from a baseline (Ancona et al. 2018, arXiv 1711.06104, section
    # 2), which here is the mean cell: tokens have no zero that means "nothing". Behind the next
    # norm, for which the size of a token does not count.
    "taylor": lambda tokens, slope: (tokens - _mean_cell(tokens)) * slope,
}


def grad_cam(
    model: MViTClassifier,
    x: Tensor,
    target: Tensor | int | None = None,
    block: int | None = None,
    method: str = "grad-cam",
) -> Tensor:
    """Which cells of a block's output speak for a class.

    ReLU of the sum over channels of the tokens, weighed by the target logit's gradient.

    Args:
        model: a classifier.
        x: (B, C, *spatial) images or clips.
        target: class, or (B,) classes; None for the likeliest of each.
        block: number of the block, or None for the deepest that the head sees cells of: with a
            head on the class token that is the last but one, since of the last block's output it
            sees the class token alone.
        method: "grad-cam" weighs by the gradient's mean over height and width, from which single
            cells' gradients differ much; "layer-cam" by each cell's own, where positive;
            "hires-cam" by each cell's own, which is 0 but for rounding where a norm alone reads
            the block, as at a stage's end; "taylor" takes the tokens as the next norm gives them,
            and weighs the difference from the mean cell by each cell's own gradient: what the
            logit would lose, to first order, if the cell were that one. docs/explain.md has
            figures.

    Returns:
        (B, *grid) from 0 up, not scaled.

    Raises:
        ValueError: no classifier, or a block, class or method that there is not.
    """
    if not isinstance(model, MViTClassifier) or not isinstance(model.head, Head):
        refuse("model", "a classifier", type(model).__name__)
    if method not in METHODS:
        refuse("method", f"one of {', '.join(METHODS)}", method)
    deepest = deepest_block(model)
    index = deepest if block is None else block_index(model, block)
    if index > deepest:
        refuse("block", f"at most {deepest}: the head sees no cell of the last block", block)
    walk = model.walk(x)
    with torch.no_grad():
        tokens, thw = next(islice(walk, index, None))
    tokens.requires_grad_()  # blocks from here on are differentiated
    reader = _reader(model, index) if method == "taylor" else None
    with torch.enable_grad(), _outputs(reader) as read:
        *_, (final, _) = (tokens, thw), *walk
        logits = model.head(model.pool_tokens(final))
        classes = logits.argmax(dim=1) if target is None else _classes(target, logits)
        score = logits.gather(1, classes[:, None]).sum()
    place = read[0] if read else tokens
    (gradient,) = torch.autograd.grad(score, place)
    parts = METHODS[method](feature_grid(place.detach(), thw), feature_grid(gradient, thw))
    return parts.sum(dim=1).relu()


def _mean_cell(tokens: Tensor) -> Tensor:
    """(B, C, *grid) -> (B, C, 1, ...)."""
    return tokens.mean(dim=tuple(range(2, tokens.ndim)), keepdim=True)


def _reader(model: MViT, block: int) -> nn.Module | None:
    """The norm that reads a block's cells one by one; None where a head takes their mean first."""
    if block + 1 < len(model.blocks):
        return model.blocks[block + 1].norm1  # type: ignore[return-value]
    return None if model.config.mean_pooling else model.norm  # type: ignore[return-value]


@contextmanager
def _outputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What a module gives, call by call."""
    kept: list[Tensor] = []
    keep = None if module is None else module.register_forward_hook(lambda *c: kept.append(c[-1]))
    try:
        yield kept
    finally:
        if keep is not None:
            keep.remove()


def deepest_block(model: MViT) -> int:
    """Number of the last block whose cells a head, or a detector, sees."""
    config = model.config
    return len(config.blocks) - 1 - int(config.cls_token and not config.mean_pooling)


def stage_block(model: MViT, stage: int) -> int:
    """Number of a stage's last block, but at most ``deepest_block``; stages count from 0."""
    ends = model.config.stage_ends
    if not is_whole(stage) or not -len(ends) <= stage < len(ends):
        refuse("stage", f"from {-len(ends)} to {len(ends) - 1}", stage)
    return min(ends[stage], deepest_block(model))


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, *grid) maps -> (B, *size), linear between the cells' centres.

    Kernels are odd and padded by half, so that cell ``i`` sees pixels round ``i * reduction``, and
    not round the middle of a tile: a map drawn as tiles lies half a cell too far right and down.
    The reduction is taken to be ``size / grid``, rounded up.
    """
    if maps.ndim == len(size) + 2 and maps.shape[1] == 1:  # stills on a grid with a time axis
        maps = maps[:, 0]
    for axis, (pixels, cells) in enumerate(zip(size, maps.shape[1:], strict=True), 1):
        places = torch.arange(pixels, device=maps.device, dtype=maps.dtype)
        places = (places / -(-pixels // cells)).clamp(max=cells - 1)
        before = places.long()
        after = (before + 1).clamp(max=cells - 1)
        rest = (places - before).view(-1, *[1] * (maps.ndim - 1 - axis))
        first, second = maps.index_select(axis, before), maps.index_select(axis, after)
        maps = first * (1 - rest) + second * rest
    return maps


def _classes(target: Tensor | int, logits: Tensor) -> Tensor:
    classes = torch.as_tensor(target, device=logits.device)
    known = not classes.is_floating_point() and classes.dtype != torch.bool
    if not known or classes.shape not in ((), (len(logits),)):
        refuse("target", "a class, or one of each input", target)
    if classes.min() < 0 or classes.max() >= logits.shape[1]:
        refuse("target", f"from 0 to {logits.shape[1] - 1}", target)
    return classes.long().expand(len(logits))
