"""How the blocks of the own-data pages run, and the data that they run on."""

from __future__ import annotations

from pathlib import Path

from tests.media_files import picture
from tests.tools.coco_folders import Folder
from tests.tools.labelled_folders import make_videos

DETECTION, VIDEO = "docs/own-detection.md", "docs/own-video.md"
PHOTO = ("photo.jpg", "docs/images/demo_predictions.png")
# The folders of `own_data`, toy models, and few steps.
COCO = ("train.json train/ val.json val/", "$OWN/train.json $OWN/train $OWN/val.json $OWN/val")
TOY = " --model toy --batch 2 --epochs 1 --device cpu"
FEW = "train.max_iter=3 train.eval_period=3"
BIRDS = (COCO, ("--out birds\n", f"--out $OUT/birds{TOY}\n"), ("birds/", "$OUT/birds/"))
CLIPS = (("clips/", "$OWN/clips"), ("flowers/", "$OWN/flowers"), ("match.mp4", "$OWN/clips/run"))
CLIPS += (("boxes.csv videos/", "$OWN/boxes.csv $OWN/videos"), PHOTO)
CLIPS += tuple(
    pair
    for name in ("sports", "flowers-data", "kitchen")
    for pair in ((f"--out {name}", f"--out $OUT/{name}{TOY}"), (f" {name}/", f" $OUT/{name}/"))
)
AVA = (" kitchen.mp4 --boxes boxes.csv --out answers", " $OWN/videos --boxes $OWN/boxes.csv")
# Page, text, swap, needs, slow: the fields of `Block` in test_documents.py.
OWN_BLOCKS = [
    (
        DETECTION,
        "predict birds/run",
        (*BIRDS, ("--num-gpus 8", FEW), ("--out answers", ""), PHOTO),
        "detectron2",
        True,
    ),
    (
        DETECTION,
        "--model toy",
        (COCO, ("birds-toy", "$OUT/birds"), (".py\n", f".py {FEW}\n")),
        "detectron2",
        True,
    ),
    (
        DETECTION,
        "birds/detection.yaml",
        (
            ("export", f"mvitv2 data detection {COCO[1]} --out birds\nexport"),
            *BIRDS,
            ("--num-gpus 8", "SOLVER.MAX_ITER 2 TEST.EVAL_PERIOD 2 SOLVER.STEPS '(1,)'"),
        ),
        "detectron2",
        True,
    ),
    (DETECTION, "--check-only", (COCO, ("birds", "$OUT/birds")), "", False),
    (DETECTION, "mvitv2://mask_rcnn", (COCO, ("birds", "$OUT/birds")), "detectron2", True),
    (VIDEO, "predict sports/run", CLIPS, "PySlowFast", True),
    (
        VIDEO,
        "--model toy",
        (("clips/", "$OWN/clips"), ("sports-toy", "$OUT/sports")),
        "PySlowFast",
        True,
    ),
    (VIDEO, "--check-only", (*CLIPS[:1], ("--out sports", "--out $OUT/sports")), "", False),
    (VIDEO, "data images", CLIPS, "PySlowFast", True),
    (VIDEO, "data ava", (*CLIPS, AVA), "PySlowFast", True),
]


def own_data(root: Path) -> Path:
    """What a person might come with: COCO jsons, videos and pictures by class, boxes."""
    from PIL import Image

    Folder(root).write()
    videos = make_videos(root / "clips") / "run"
    (root / "videos").symlink_to(videos)
    text = "video,second,x1,y1,x2,y2,label\n"
    for file in sorted(videos.iterdir()):
        text += f"{file.name},0,0.1,0.1,0.6,0.8,walk\n{file.name},1,0.1,0.1,0.6,0.8,fall\n"
    (root / "boxes.csv").write_text(text)
    for name in ("rose", "tulip"):
        (root / "flowers" / name).mkdir(parents=True)
        for index in range(5):
            pixels = picture(70, 70, seed=index + 10 * len(name))
            Image.fromarray(pixels).save(root / "flowers" / name / f"{index}.png")
    return root
