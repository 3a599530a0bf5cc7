"""The smallest data sets that PySlowFast's loaders read: clips, stills, and AVA-like boxes."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

FRAMES, SIZE, CLASSES = 48, 64, 6


def picture(label: int, step: int, size: int = SIZE) -> np.ndarray:
    """(size, size, 3) uint8: a bright square at a place that depends on label and step."""
    image = np.full((size, size, 3), 30 + 20 * label, np.uint8)
    x, y = (7 * label + step) % (size - 16), (11 * label + 2 * step) % (size - 16)
    image[y : y + 16, x : x + 16] = (255, 255 - 30 * label, 40 * label)
    return image


def write_clip(path: Path, label: int, fps: int = 30, frames: int = FRAMES) -> None:
    """An H.264 clip whose frames can be told apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"}
        for step in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(label, step), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_kinetics(folder: Path, train: int = 12, val: int = 6, test: int = 6) -> None:
    """``train.csv``, ``val.csv``, ``test.csv`` and ``videos/``, as the kinetics loader reads."""
    (folder / "videos").mkdir(parents=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows = []
        for index in range(count):
            name, label = f"videos/{split}_{index:02d}.mp4", index % CLASSES
            write_clip(folder / name, label)
            rows.append(f"{name} {label}\n")
        (folder / f"{split}.csv").write_text("".join(rows))


def make_imagenet(folder: Path, per_class: int = 2) -> None:
    """``train/n00000001/*.jpg`` and ``val``, as the imagenet loader reads."""
    for split in ("train", "val"):
        for label in range(CLASSES):
            target = folder / split / f"n{label:08d}"
            target.mkdir(parents=True)
            for index in range(per_class):
                cv2.imwrite(str(target / f"{index}.jpg"), picture(label, 3 * index)[..., ::-1])


def make_ava(folder: Path, videos: int = 2, seconds: tuple[int, ...] = (902, 904)) -> None:
    """Frames, lists, boxes of two classes, label map and exclusions, as the ava loader reads."""
    names = [f"v{index}" for index in range(videos)]
    frames = (max(seconds) - 900 + 2) * 30  # second 900 is frame 0, 30 frames a second
    (folder / "lists").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rows = ["original_vido_id video_id frame_id path labels\n"]
    for index, name in enumerate(names):
        (folder / "frames" / name).mkdir(parents=True)
        for step in range(frames):
            path = f"{name}/{name}_{step:06d}.jpg"
            cv2.imwrite(str(folder / "frames" / path), picture(index, step))
            rows.append(f'{name} {index} {step} {path} ""\n')
    for split in ("train", "val"):
        (folder / "lists" / f"{split}.csv").write_text("".join(rows))
    truth, predicted = [], []
    for index, name in enumerate(names):
        for second in seconds:
            for box, label in (("0.1,0.1,0.6,0.9", 1), ("0.3,0.2,0.9,0.8", 1 + index)):
                truth.append(f"{name},{second:04d},{box},{label},0\n")
                predicted.append(f"{name},{second:04d},{box},,0.95\n")
    annotations = folder / "annotations"
    for file in ("ava_train_v2.2.csv", "ava_val_v2.2.csv"):
        (annotations / file).write_text("".join(truth))
    (annotations / "ava_val_predicted_boxes.csv").write_text("".join(predicted))
    (annotations / "ava_val_excluded_timestamps_v2.2.csv").write_text("")
    items = (f'item {{\n  name: "c{i}"\n  id: {i}\n}}\n' for i in (1, 2))
    (annotations / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text("".join(items))
