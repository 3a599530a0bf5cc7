"""detectron2's ROIAlign over torchvision; apart, since torchvision is needed for nothing else."""

from __future__ import annotations

from torchvision.ops import RoIAlign


class ROIAlign(RoIAlign):
    """detectron2's argument order over torchvision's operator, which it wraps too."""

    def __init__(
        self,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__(output_size, spatial_scale, sampling_ratio, aligned)
