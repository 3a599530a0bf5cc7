"""MViTv2 as a detectron2 ``Backbone``, and its builders for ``BACKBONE_REGISTRY``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from mvitv2_core import MViT as Trunk
from mvitv2_core import MViTConfig
from mvitv2_core.checks import check_flag, check_sizes, check_whole, is_whole
from mvitv2_core.config import lay_out

from .checkpoint import install
from .config import backbone_kwargs
from .own_data import register_from_keys
from .stages import SCALES, as_tuple, check_ends, check_features, layout_rows

install()  # official image checkpoints as MODEL.WEIGHTS and train.init_checkpoint


class MViT(Trunk, Backbone):
    """Drop-in for ``detectron2.modeling.MViT``: same arguments, same names, same results.

    Feature maps come as ``{"scale2": (B, C, H/4, W/4), ..., "scale5": (B, C, H/32, W/32)}``,
    sizes rounded up. Only blocks that a requested feature needs are built and run.

    Args:
        img_size: (H, W), or one number for both, that the position tables are sized for. Other
            sizes are accepted at run time, with the tables resampled.
        patch_kernel, patch_stride, patch_padding: the patch embedding's convolution.
        in_chans: channels of the images.
        embed_dim: width of the first stage; doubles at each stage.
        depth: number of blocks.
        num_heads: heads of the first stage; doubles at each stage.
        last_block_indexes: index of each stage's last block.
        qkv_pool_kernel: kernel of the q, k and v pools.
        adaptive_kv_stride: kv stride of the first stage; halved at each stage.
        adaptive_window_size: window width of the first stage in tokens; halved after each
            stage's first block. Last blocks of all stages but the first attend globally.
        residual_pooling: add pooled q to the output of attention.
        mlp_ratio: hidden width of the MLP over its input's.
        qkv_bias: whether ``qkv`` has a bias.
        drop_path_rate: drop path of the last block; rises linearly from 0.
        norm_layer: makes a norm from its number of channels. The official configs pass
            ``partial(nn.LayerNorm, eps=1e-6)``.
        act_layer: makes the MLP's activation.
        use_abs_pos: add absolute positions, resized bicubically.
        use_rel_pos: add decomposed relative positions.
        rel_pos_zero_init: start relative positions at zero.
        use_act_checkpoint: recompute each block in the backward pass.
        pretrain_img_size: image size that ``pos_embed`` was trained at.
        pretrain_use_cls_token: whether ``pos_embed`` has the class token's row in front.
        out_features: names among "scale2" ... "scale5".
        dim_mul_in_att: whether the width grows in a stage's first attention, as in detectron2's
            class, or in the MLP of the block before, as in the published IN-1K L.
        compile: compile each block; changing sizes of images make PyTorch compile once more, for
            any size (docs/gpu.md).

    Raises:
        ValueError: arguments that do not fit together; the message names them.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_kernel: Sequence[int] = (7, 7),
        patch_stride: Sequence[int] = (4, 4),
        patch_padding: Sequence[int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: int = 16,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 11, 15),
        qkv_pool_kernel: Sequence[int] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int = 56,
        residual_pooling: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = False,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = SCALES,
        dim_mul_in_att: bool = True,
        compile: bool = False,
    ) -> None:
        size = (img_size,) * 2 if isinstance(img_size, int) else as_tuple("img_size", img_size)
        stride = as_tuple("patch_stride", patch_stride)
        ends = check_ends(last_block_indexes, depth)
        features = check_features(out_features, len(ends))
        for name, value in (("pretrain_img_size", pretrain_img_size), ("embed_dim", embed_dim)):
            check_whole(name, value)
        patch = as_tuple("patch_kernel", patch_kernel)
        for name, sizes in (("img_size", size), ("patch_kernel", patch), ("patch_stride", stride)):
            check_sizes(name, sizes, 2)
        for name, sizes in (("img_size", size), ("pretrain_img_size", (pretrain_img_size,) * 2)):
            if any(n < s for n, s in zip(sizes, stride, strict=True)):
                raise ValueError(f"{name} must be at least patch_stride={stride}, got {sizes}")
        kernel = as_tuple("qkv_pool_kernel", qkv_pool_kernel)
        check_sizes("qkv_pool_kernel", kernel, 2)
        if not all(n % 2 for n in kernel):
            raise ValueError(f"qkv_pool_kernel must be odd on every axis, got {kernel}")
        for name, flag in (
            ("use_abs_pos", use_abs_pos),
            ("use_rel_pos", use_rel_pos),
            ("use_act_checkpoint", use_act_checkpoint),
            ("pretrain_use_cls_token", pretrain_use_cls_token),
        ):
            check_flag(name, flag)
        thw = tuple(n // s for n, s in zip(size, stride, strict=True))
        sizes = (kernel, adaptive_kv_stride, adaptive_window_size)
        check_flag("dim_mul_in_att", dim_mul_in_att)
        rows = layout_rows(ends, embed_dim, num_heads, *sizes, dim_mul_in_att)
        blocks = lay_out(rows, embed_dim, thw, drop_path_rate, dim_mul_in_att)
        deepest = ends[int(features[-1].removeprefix("scale")) - 2]
        config = MViTConfig(
            blocks=blocks[: deepest + 1],
            input_size=size,
            patch_kernel=patch,
            patch_stride=stride,
            patch_padding=as_tuple("patch_padding", patch_padding),
            in_chans=in_chans,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            abs_pos="joint" if use_abs_pos else "none",
            abs_pos_thw=tuple(pretrain_img_size // s for s in stride),
            abs_pos_cls_row=pretrain_use_cls_token,
            rel_pos=(use_rel_pos,) * 2,
            rel_pos_zero_init=rel_pos_zero_init,
            residual_pooling=residual_pooling,
        )
        super().__init__(config, norm_layer, act_layer, use_act_checkpoint, compile)
        names = [f"scale{2 + stage}" for stage in range(len(ends))]
        self._stage_names = names
        self._out_features = features
        self._out_feature_strides, self._out_feature_channels = {}, {}
        for stage, end in enumerate(config.stage_ends):
            name = names[stage]
            if name in features:
                dim = config.blocks[end].dim_out
                self._out_feature_channels[name] = dim
                self._out_feature_strides[name] = stride[0] * 2**stage
                self.add_module(f"{name}_norm", norm_layer(dim))
        self.apply(self.init_weights)

    def init_weights(self, module: nn.Module) -> None:
        """detectron2's initial values: linears truncated normal (0.02), biases zero."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            if module.bias is not None:  # norm_layer may make norms without
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """(B, in_chans, H, W) images -> feature maps by name."""
        outputs = {}
        for name, (tokens, hw) in zip(self._stage_names, super().forward(x), strict=False):
            if name in self._out_features:
                tokens = getattr(self, f"{name}_norm")(tokens)
                # (B, H * W, C) -> (B, C, H, W)
                outputs[name] = tokens.unflatten(1, hw).permute(0, 3, 1, 2)
        return outputs

    def stage_norm(self, stage: int) -> nn.Module | None:
        """The norm of a requested feature; None for a stage that gives none."""
        return getattr(self, f"{self._stage_names[stage]}_norm", None)

    def freeze(self, freeze_at: int = 0) -> MViT:
        """Stop training the first stages, as ``MODEL.BACKBONE.FREEZE_AT`` counts them.

        Args:
            freeze_at: 0 freezes nothing, 1 the patch embedding and absolute positions, 2 the
                blocks and the norm of "scale2" as well, and so on to 5.

        Returns:
            The model itself.

        Raises:
            ValueError: ``freeze_at`` is not a whole number from 0 to 5.
        """
        last = len(self._stage_names) + 1
        if not is_whole(freeze_at) or freeze_at not in range(last + 1):
            raise ValueError(
                f"freeze_at must be a whole number from 0 to {last}, got {freeze_at!r}"
            )
        if freeze_at >= 1:
            self.patch_embed.requires_grad_(False)
            if self.pos_embed is not None:
                self.pos_embed.requires_grad_(False)
        start = 0
        for stage, end in enumerate(self.config.stage_ends):
            if freeze_at >= stage + 2:
                self.blocks[start : end + 1].requires_grad_(False)
                norm = getattr(self, f"{self._stage_names[stage]}_norm", None)
                if norm is not None:
                    norm.requires_grad_(False)
            start = end + 1
        return self


@BACKBONE_REGISTRY.register()
def build_mvitv2_backbone(cfg: Any, input_shape: ShapeSpec) -> MViT:
    """The backbone of ``MODEL.MVITV2``, frozen up to ``MODEL.BACKBONE.FREEZE_AT``.

    It also registers the data set that ``DATASETS.OWN`` names: detectron2's trainer gives its
    config to nothing else of this package.

    Args:
        cfg: detectron2's config with the keys of ``add_mvitv2_config``.
        input_shape: its ``channels`` become ``in_chans``.
    """
    kwargs = backbone_kwargs(cfg)
    register_from_keys(cfg)
    try:
        model = MViT(in_chans=input_shape.channels, **kwargs)
    except ValueError as error:
        raise ValueError(f"MODEL.MVITV2: {error}") from error
    return model.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _fpn(cfg: Any, bottom_up: MViT, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_mvitv2_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """``build_mvitv2_backbone`` under detectron2's FPN: p2 ... p5, and p6 by max pooling."""
    return _fpn(cfg, build_mvitv2_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_mvitv2_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """``build_mvitv2_backbone`` under detectron2's FPN, with convolved p6 and p7 for RetinaNet."""
    bottom_up = build_mvitv2_backbone(cfg, input_shape)
    top = bottom_up.output_shape().get("scale5")
    if top is None:
        raise ValueError(
            f"MODEL.MVITV2.OUT_FEATURES must hold 'scale5' for RetinaNet's p6, got "
            f"{cfg.MODEL.MVITV2.OUT_FEATURES}"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _fpn(cfg, bottom_up, LastLevelP6P7(top.channels, channels, in_feature="scale5"))
