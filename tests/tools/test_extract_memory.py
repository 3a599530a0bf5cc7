"""Hours of video in the memory of seconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from mvitv2_tools.extract import read_features
from tests.media_files import frame_number, write_video
from tests.tools.extracting import clip_model, start

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")


def repeat_video(source: Path, target: Path, times: int) -> Path:
    """The same pictures again and again, without encoding them anew."""
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        packets = [p for p in given.demux(video=0) if p.dts is not None]
        stream = made.add_stream_from_template(given.streams.video[0])
        unit = packets[0].time_base
        length = round(Fraction(len(packets), 30) / unit)
        shown = [(packet.pts, packet.dts) for packet in packets]
        for turn in range(times):
            for packet, (pts, dts) in zip(packets, shown, strict=True):
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.time_base, packet.stream = unit, stream
                made.mux(packet)
    return target


def peak_mib(*arguments: object) -> float:
    """Largest resident memory of the command, in a process of its own."""
    process = start(*arguments)
    assert process.stderr is not None
    threading.Thread(target=process.stderr.read).start()  # what it says is heard, and not kept
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss / 2**10


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="no figures of a process's memory here")
@pytest.mark.parametrize("features", ["pooled", "grid"])
def test_an_hour_of_video(features: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    """No more than 32 MiB above what twenty seconds of the same video take."""
    clip_model(tmp_path / "run")
    short = write_video(tmp_path / "short.mp4", frame_number(600, 340, 256), g="60", bf="0")
    hour = repeat_video(short, tmp_path / "hour.mp4", 180)
    peaks, counts = [], []
    for video in (short, hour):
        out = tmp_path / video.stem
        options = ("--stride", 1, "--features", features, "--format", "safetensors")
        peaks.append(peak_mib(tmp_path / "run", video, "--out", out, *options))
        counts.append(sum(len(rows) for rows in read_features(out)))
    print(f"{features}: {peaks[0]:.0f} MiB for 20 s, {peaks[1]:.0f} MiB for an hour")
    assert counts == [20, 3600]
    assert peaks[1] < peaks[0] + 32
    tally("MiB for an hour of video above twenty seconds", max(round(peaks[1] - peaks[0]), 0))
