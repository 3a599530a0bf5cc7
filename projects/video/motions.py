"""One long video of the toy Kinetics' test clips, motion after motion, twice through them all.

    python -m projects.video.motions FILE

Every clip has a shape and colours of its own: the two halves are alike in how things move alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from projects.video import files, scenes, toy_kinetics

IN_A_ROW = 2  # clips of a motion


def main() -> None:
    """Write the video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="to write, .mp4")
    target = parser.parse_args().file
    clips = toy_kinetics.draw_clips("test", 2 * IN_A_ROW)
    ordered = []
    for half in range(2):
        for motion in scenes.MOTIONS:
            same = [clip for clip in clips if clip.motion == motion]
            ordered += same[half * IN_A_ROW : (half + 1) * IN_A_ROW]
    files.write_video(target, np.concatenate([clip.frames() for clip in ordered]))
    seconds = IN_A_ROW * toy_kinetics.FRAMES / files.FPS
    print(f"{target}: {len(ordered)} clips; another motion every {seconds:g} s")


if __name__ == "__main__":
    main()
