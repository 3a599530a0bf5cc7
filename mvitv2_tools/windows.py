"""Long videos, window by window, in one pass and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mvitv2_core.media import MediaError, Video
from mvitv2_core.transforms import ClipTransform


@dataclass
class Window:
    """A part of a video, and which of its frames each clip takes.

    Args:
        start, end: seconds.
        clips: (T,) frame numbers of each clip.
    """

    start: float
    end: float
    clips: list[Tensor]

    @property
    def needed(self) -> set[int]:
        """Numbers of all its frames."""
        return set(torch.cat(self.clips).tolist())


def read_windows(
    video: Video, transform: ClipTransform, length: float, stride: float, first: int = 0
) -> Iterator[tuple[Window, list[Tensor]]]:
    """Every window of a video with the frames of its clips, (T, h, w, 3) uint8 each.

    A window is tested as a video of its length would be. What is left at the end counts from
    half a window on, or where there is nothing else, and its last frame is repeated.

    Args:
        video: opened, at its start.
        transform: of the model.
        length, stride: seconds; windows overlap where the stride is shorter.
        first: windows to leave out at the beginning, which an earlier run had. The video is
            decoded from its start all the same: where a file lets one seek, and what a decoder
            gives after that, is not sure enough for the same bits.

    Raises:
        MediaError: nothing could be decoded.
    """
    fps = video.fps
    relative = transform.indices(max(round(length * fps), 1), fps)
    waiting: deque[Window] = deque()
    kept: dict[int, Tensor] = {}
    wanted: set[int] = set()
    count, number, shown, given = 0, -1, None, 0

    def clips(window: Window) -> list[Tensor]:
        last = max(kept)
        return [torch.stack([kept[min(i, last)] for i in c.tolist()]) for c in window.clips]

    for frame in video.frames():
        previous, number = number, max(round(frame.seconds * fps), number + 1)
        while (start := round(count * stride * fps)) <= number:
            if count >= first:
                window = Window(
                    count * stride, count * stride + length, [index + start for index in relative]
                )
                waiting.append(window)
                wanted |= window.needed
            else:
                given += 1
            count += 1
        # A gap in the stream: its last frame stays on screen.
        for missing in [i for i in wanted if previous < i < number]:
            kept[missing] = video.to_tensor(shown or frame.picture)
        shown = frame.picture
        if number in wanted:
            kept[number] = video.to_tensor(shown)
        while waiting and max(waiting[0].needed) <= number:
            yield waiting[0], clips(waiting[0])
            waiting.popleft()
            given += 1
            wanted = set().union(*(w.needed for w in waiting))
            kept = {i: pixels for i, pixels in kept.items() if i in wanted}
    if number < 0 or shown is None:
        raise MediaError(f"{video.file}: no frame could be decoded")
    total = (number + 1) / fps
    for window in waiting:
        if given and round((total - window.start) * fps) < round(length * fps / 2):
            continue
        kept[number] = video.to_tensor(shown)
        window.end = min(window.end, total)
        held = {i for i in kept if i >= round(window.start * fps)}
        kept = {i: kept[i] for i in held}
        yield window, clips(window)
        given += 1
