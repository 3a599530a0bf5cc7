"""Features between the stages, and the model's layers in groups, under timm's names for both.

A stage's feature is what its last block gives, as a hook on that block sees it: in a model of S
stages index 0 is the finest grid and S - 1 the coarsest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import prod
from typing import Any

from torch import Tensor, nn

from .checks import check_flag, is_whole, refuse
from .config import MViTConfig
from .layer_groups import check_decay, layer_of

FORMATS = ("NCHW", "NCTHW", "NLC")


class Features(nn.Module):
    """What ``MViT`` gives besides its outputs; a base class of it alone."""

    config: MViTConfig

    def walk(self, x: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """``MViT.walk``."""
        raise NotImplementedError

    def stage_norm(self, stage: int) -> nn.Module | None:
        """The norm of a stage's tokens; a classifier's ``norm`` is of its last stage."""
        last = stage == len(self.config.stage_ends) - 1
        return getattr(self, "norm", None) if last else None

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of every stage's feature."""
        return FeatureInfo(self.config)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> the last stage's (B, N, C) tokens, class token first if there is one.

        They are normalised where the model has a last norm (a classifier, detectron2's backbone),
        token by token, for images as for clips. ``MViTClassifier.forward`` gives the same to its
        head, but with ``mean_pooling``, which takes the mean first and the norm of it.
        ``feature_grid`` or ``forward_intermediates`` make maps of tokens.
        """
        return self.forward_intermediates(x, indices=1, output_fmt="NLC")[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The features of chosen stages, with timm's arguments and meaning.

        Args:
            x: (B, C, *spatial) images or clips.
            indices: stages, from 0, negative ones from the end; a number for the last so many;
                None for all. Features come in the order of the stages.
            norm: apply a stage's norm where it has one: a classifier to its last stage alone (as
                timm), detectron2's backbone to each of its ``out_features``.
            stop_early: run no block after the last feature wanted.
            output_fmt: "NCHW" for (B, C, *grid) maps without class token, of clips (B, C, T, H, W),
                which "NCTHW" means as well; "NLC" for (B, N, C) tokens with it.
            intermediates_only: leave out the first of the two results.

        Returns:
            The last stage's (B, N, C) tokens as ``forward_features`` gives them (with
            ``stop_early`` those that the last block run gave, without norm unless they are the
            last stage's), and the list of features; or the list alone.

        Raises:
            ValueError: indices or a format that the model does not have, or ``norm`` for a trunk
                without one.
        """
        for name, flag in (("norm", norm), ("stop_early", stop_early)):
            check_flag(name, flag)
        check_flag("intermediates_only", intermediates_only)
        ends = self.config.stage_ends
        taken = take_indices(len(ends), indices)
        if output_fmt not in FORMATS or (output_fmt == "NCTHW" and self.config.rank != 3):
            refuse("output_fmt", "NCHW, NLC or, for clips, NCTHW", output_fmt)
        if norm and self.stage_norm(len(ends) - 1) is None:
            refuse("norm", "False: the model has no last norm", norm)
        last = ends[max(taken)] if stop_early else ends[-1]
        features = []
        for index, (tokens, thw) in enumerate(islice(self.walk(x), last + 1)):
            if index in ends and ends.index(index) in taken:
                feature = self._normed(tokens, ends.index(index)) if norm else tokens
                features.append(feature if output_fmt == "NLC" else feature_grid(feature, thw))
        if intermediates_only:
            return features
        final = last == ends[-1]
        return self._normed(tokens, len(ends) - 1) if final else tokens, features

    def _normed(self, tokens: Tensor, stage: int) -> Tensor:
        norm = self.stage_norm(stage)
        return tokens if norm is None else norm(tokens)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """timm's: the layer of a parameter by its name, as its optimizers with ``layer_decay`` ask.

        As ``layer_groups.layer_of``: the patch embedding with class token and positions, each
        block, and all that stands behind the last one. With ``coarse`` each stage is a layer, as in
        timm's own MViTv2, and the norm of a stage's tokens goes with the stage.
        """
        check_flag("coarse", coarse)
        ends, depth = self.config.stage_ends, len(self.config.blocks)

        def stage_of(name: str) -> int:
            if name.startswith("scale"):  # detectron2's scale2_norm ... scale5_norm
                return int(name[5]) - 1
            if name.startswith("norm."):
                return len(ends)
            layer = layer_of(name, depth)
            return 0 if layer == 0 else 1 + sum(end < layer - 1 for end in ends)

        return stage_of if coarse else partial(layer_of, depth=depth)

    def layer_groups(self, coarse: bool = False) -> list[list[str]]:
        """Names of the parameters of each layer of ``group_matcher``, from the input's side."""
        names, layer = [name for name, _ in self.named_parameters()], self.group_matcher(coarse)
        count = max(layer(name) for name in names) + 1
        return [[name for name in names if layer(name) == index] for index in range(count)]


class FeatureInfo(Sequence[dict[str, Any]]):
    """What the features of a model are, one row for each, read as timm's class of this name.

    Rows hold "module" (the block to hook), "num_chs", "reduction" (pixels from one cell to the
    next; the larger where height and width differ), "reduction_time" (frames; 1 for images),
    "reductions" (of every axis of the grid) and "index" of the stage.

    Args:
        config: of the model.
        out_indices: the stages that ``channels()`` and the like list; None for all.
    """

    def __init__(self, config: MViTConfig, out_indices: Sequence[int] | None = None) -> None:
        # Two axes of patches on a grid of three are stills.
        reduction = (1,) * (config.rank - len(config.patch_stride)) + config.patch_stride
        self._rows: list[dict[str, Any]] = []
        for index, block in enumerate(config.blocks):
            reduction = tuple(r * s for r, s in zip(reduction, block.stride_q, strict=True))
            if index not in config.stage_ends:
                continue
            row = {"module": f"blocks.{index}", "num_chs": block.dim_out}
            row |= {"reduction": max(reduction[-2:]), "reductions": reduction}
            row |= {"reduction_time": reduction[0] if config.rank == 3 else 1}
            self._rows.append({**row, "index": len(self._rows)})
        chosen = range(len(self)) if out_indices is None else out_indices
        self.out_indices = tuple(chosen)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """A column of the rows of ``out_indices``, or of the stages ``idx``; of one, a value."""
        if isinstance(idx, int):
            return self._rows[idx][key]
        return [self._rows[i][key] for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Channels of each feature."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Pixels from one cell of each feature to the next."""
        return self.get("reduction", idx)

    def reduction_time(self, idx: int | Sequence[int] | None = None) -> Any:
        """Frames from one cell of each feature to the next."""
        return self.get("reduction_time", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """The block that gives each feature; its output is tokens and their grid."""
        return self.get("module", idx)


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """Which of ``count`` features: all, the last so many, or those listed, negative from the end.

    Raises:
        ValueError: one that there is not.
    """
    if indices is None:
        return tuple(range(count))
    if is_whole(indices):
        if not 1 <= indices <= count:  # type: ignore[operator]
            refuse("indices", f"the last 1 to {count} features", indices)
        return tuple(range(count - indices, count))  # type: ignore[operator]
    listed = isinstance(indices, Sequence) and not isinstance(indices, str) and len(indices) > 0
    if not listed or not all(is_whole(i) and -count <= i < count for i in indices):  # type: ignore[union-attr]
        refuse("indices", f"None, a number, or stages from {-count} to {count - 1}", indices)
    return tuple(i % count for i in indices)  # type: ignore[union-attr]


def feature_grid(tokens: Tensor, thw: Sequence[int]) -> Tensor:
    """(B, N, C) tokens on a grid -> (B, C, *thw) map; a class token in front is left out.

    Raises:
        ValueError: neither as many tokens as cells nor one more.
    """
    cells = prod(thw)
    if tokens.shape[1] - cells not in (0, 1):
        refuse("thw", f"the grid of {tokens.shape[1]} tokens", tuple(thw))
    # (B, N, C) -> (B, cells, C) -> (B, C, cells) -> (B, C, *thw)
    return tokens[:, tokens.shape[1] - cells :].transpose(1, 2).unflatten(2, tuple(thw))


def layer_decay_groups(
    model: Features, lr: float, decay: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: the learning rate falls by a factor from layer to layer.

    The last layer of ``model.layer_groups()`` learns with ``lr``, the one before it with ``lr *
    decay``, and so on to the patch embedding (BEiT, arXiv 2106.08254, appendix; timm's
    ``param_groups_layer_decay``). Biases, norms, position tables and the class token have no
    weight decay, as in timm and in the official image and video recipes.

    Args:
        model: a trunk, classifier or backbone. Parameters that do not learn are left out.
        lr: of the last layer.
        decay: above 0, at most 1.
        weight_decay: of the others.

    Raises:
        ValueError: a decay that is none.
    """
    check_decay("decay", decay)
    parameters = dict(model.named_parameters())
    groups = []
    layers = model.layer_groups()
    for layer, names in enumerate(layers):
        scale = decay ** (len(layers) - 1 - layer)
        for decays in (True, False):
            chosen = [n for n in names if _decays(n, parameters[n]) == decays]
            learning = [n for n in chosen if parameters[n].requires_grad]
            if learning:
                group = {"params": [parameters[n] for n in learning], "names": learning}
                group |= {"lr": lr * scale, "lr_scale": scale}
                groups.append({**group, "weight_decay": weight_decay if decays else 0.0})
    return groups


def _decays(name: str, parameter: nn.Parameter) -> bool:
    table = name.split(".")[-1].startswith(("rel_pos", "pos_embed", "cls_token"))
    return parameter.ndim > 1 and not table
