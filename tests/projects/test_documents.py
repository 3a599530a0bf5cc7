"""Every Python, YAML and shell block of the documents runs, as the page tells the reader.

``BLOCKS`` says how; a block that it does not name fails, and so does a row without a block.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.projects.own_pages import OWN_BLOCKS, own_data

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "MODEL_ZOO.md", "CONTRIBUTING.md"))]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("projects/*/README.md"))]
PACKAGES = ("mvitv2_core", "mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools")
SHELL, OUTPUTS = ("", "sh", "bash"), ("text",)
TRAINER = '"$(python projects/detection/find_tools.py lazyconfig_train_net.py)"'
YAML_TRAINER = '"$(python projects/detection/find_tools.py train_net.py)"'
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """How a block runs.

    Args:
        page: its file.
        text: what it holds, and no other block of the page does.
        swap: what is replaced before it runs: long runs are cut short, data that nobody has here
            is replaced by toy data.
        needs: "detectron2", "PySlowFast", or why the block cannot run in a test, in words.
        slow: whether it takes long.
    """

    page: str
    text: str
    swap: tuple[tuple[str, str], ...] = ()
    needs: str = ""
    slow: bool = False


NETWORK = "needs an environment of its own and the network"
SUITE = "needs no test: it runs this suite"
DETECTION, VIDEO = "projects/detection/README.md", "docs/video.md"
TRAINING = "docs/training.md"
RUN_NET = (("mvitv2_slowfast.run_net", "tests.projects.read_run_net"),)
# check_config reads a command's config and overrides as the trainers do, and builds the model.
CHECK = ((TRAINER, "projects/detection/check_config.py"), ("--config-file ", ""))
CHECK += ((YAML_TRAINER, CHECK[0][1]), ("projects/detection/train_net.py", CHECK[0][1]))
CHECK += (("--num-gpus 8", ""), ("--eval-only", ""))
SHORT = "SOLVER.MAX_ITER 2 TEST.EVAL_PERIOD 0 OUTPUT_DIR $OUT"
QUICK = "train.max_iter=2 train.eval_period=0 train.output_dir=$OUT"
CHECKOUT = ("/path/to/SlowFast", "$SF")
PREDICT = ("pip install -e '.[predict]'", "")
PHOTO = ("photo.jpg", "docs/images/demo_predictions.png")
OS = ("import torch\n", "import os\nimport torch\n")
CLIP = "from tests.media_files import frame_number, write_video\n"
CLIP += "film = write_video(os.environ['OUT'] + '/a.mp4', frame_number(30, 64, 48))\n"
FILMED = ((OS[0], OS[1] + CLIP), ('"dance.mp4"', "film"), ("weights=True", "weights=False"))
KINETICS = "import os\nfrom pathlib import Path\nfrom tests.slowfast.toy import make_kinetics\n"
KINETICS += "make_kinetics(Path(os.environ['OUT']) / 'k400')\nfrom mvitv2_slowfast.plugin"
OWN_LOADER = (("from mvitv2_slowfast.plugin", KINETICS), ('"k400"', 'os.environ["OUT"] + "/k400"'))
FINE_TUNED = """python -c 'import os, torch; from mvitv2_core import create_model
model = create_model("mvitv2_tiny", num_classes=10)
torch.save(model.state_dict(), os.environ["OUT"] + "/birds.pth")'
mvitv2 predict $OUT/birds"""
TRAINED = "needs what make demo and make demo-video leave behind"
MADE = (("import json\n", "import json\nfrom tests.tools.exported import made\n"),)
MADE += (('"tiny.onnx"', 'made("tiny.onnx")'), ('"tiny.pt2"', 'made("tiny.pt2")'))
MADE += (('"compiled.pt2"', 'made("compiled.pt2", True)'),)
VENV = (("make ", f"make VENV={sys.prefix} "),)
HERE = (".venv/", f"{sys.prefix}/")
TOYS = ("outputs/demo datasets/toy_shapes/val --out out", f"mvitv2_tiny_in1k {PHOTO[1]}")
SMALL = ("32, 128, 160", "32, 32, 32")  # an input of the same rank
ALONE = (" --num-machines 2 --machine-rank 0 --dist-url tcp://FIRST_MACHINE:29500", "")
BLOCKS = [
    Block("README.md", "make demo\n", needs="needs no test: it is that of docs/demo.md"),
    Block("README.md", "mvitv2 predict outputs/demo", (HERE, TOYS, PHOTO)),
    Block("README.md", "create_transform(model.info)", (PHOTO,)),
    Block("README.md", "pip install -e '.[predict]'", needs=NETWORK),
    Block("docs/index.md", "create_transform(model.info)", (PHOTO,), slow=True),
    Block("docs/install.md", "make setup\n", needs=NETWORK),
    Block("docs/install.md", "pip install -e '.[detectron2]'", needs=NETWORK),
    Block("docs/install.md", "make detectron2", needs=NETWORK),
    Block("docs/install.md", "pip install --no-build-isolation", needs=NETWORK),
    Block("docs/install.md", "mvitv2 --version", slow=True),
    Block("docs/install.md", "mvitv2_core.__version__"),
    Block("docs/platforms.md", "pip-audit", needs=NETWORK),
    Block("docs/demo.md", "make demo\n", (("demo\n", 'demo DEMO="$DEMO"\n'), *VENV), slow=True),
    Block("docs/demo.md", "mvitv2 predict outputs/demo", needs=TRAINED),
    Block("docs/images.md", 'list_models("*tiny*")'),
    Block("docs/images.md", "topk(5)", (PHOTO,), slow=True),
    Block("docs/images.md", "frames=32", (SMALL,)),
    Block("docs/images.md", "dance.mp4", FILMED, slow=True),
    Block("docs/images.md", "cross_entropy", (('"birds', 'os.environ["OUT"] + "/birds'), OS)),
    Block("docs/images.md", "predict birds.pth", (("mvitv2 predict birds", FINE_TUNED), PHOTO)),
    Block("docs/images.md", "MViTConfig.variant"),
    Block("docs/images.md", "mvitv2 cost T", slow=True),
    Block("docs/faq.md", "image_model, clip_model"),
    Block("docs/faq.md", 'weights="mvitv2_tiny_in1k"', slow=True),
    Block(
        "docs/weights.md",
        "mvitv2 inspect FILE",
        (
            *((" FILE", " $S"), (" IN OUT --to", " $S $OUT/timm.pth --to"), (" A B", " $S $S")),
            (" IN OUT --config", " $S $OUT/clip.pyth --config"),
        ),
        needs="PySlowFast",
    ),
    Block("docs/weights.md", 'allow_new=("head",)'),
    Block("docs/machines.md", "lazyconfig_train_net", (ALONE, *CHECK), "detectron2", slow=True),
    Block(
        "docs/machines.md",
        "--num-gpus 8 \\\n    --num-machines",
        (ALONE, ("--resume ", ""), *CHECK),
        "detectron2",
        slow=True,
    ),
    Block("docs/machines.md", "--num_shards 2", RUN_NET, "PySlowFast", slow=True),
    Block(
        "docs/machines.md", "slurm.sh", needs="needs SLURM: tests/projects/test_machine_scripts.py"
    ),
    Block("docs/machines.md", "torchrun.sh", needs="needs machines: test_machine_scripts.py there"),
    Block(
        "docs/machines.md",
        "train.sharded=True",
        (("--num-gpus 8 --resume", ""), *CHECK),
        "detectron2",
        slow=True,
    ),
    Block("docs/machines.md", "--rdzv-endpoint", needs="needs machines and a program of yours"),
    Block("docs/detectron2.md", "from detectron2 import model_zoo", needs="detectron2"),
    Block(
        "docs/detectron2.md",
        "toy_mask_rcnn_mvitv2.py train.max_iter=100",
        (HERE, ("train.max_iter=100", QUICK)),
        needs="detectron2",
    ),
    Block("docs/detectron2.md", "_BASE_: configs/COCO/Base-MViTv2-FPN.yaml", needs="detectron2"),
    Block(
        "docs/detectron2.md",
        "projects.detection.toy_env",
        (("SOLVER.MAX_ITER 100", SHORT),),
        needs="detectron2",
        slow=True,
    ),
    Block("docs/detectron2.md", "from mvitv2_d2 import MViT\n\nnorm", needs="detectron2"),
    Block("MODEL_ZOO.md", "from mvitv2_core import MViTClassifier"),
    Block("MODEL_ZOO.md", "backbone=True", needs="detectron2"),
    Block("CONTRIBUTING.md", "make setup ", needs=NETWORK),
    Block("CONTRIBUTING.md", "make lint ", needs=SUITE),
    Block("CONTRIBUTING.md", "make demo && cp", needs="needs no test: it is README's make demo"),
    Block(
        "docs/explain.md",
        "mvitv2 explain mvitv2_tiny_in1k",
        (PREDICT, PHOTO, ("--out out", "--out $OUT/out")),
    ),
    Block("docs/explain.md", "from mvitv2_core.explain import"),
    Block(
        "docs/explain.md",
        "projects.explain.toy",
        needs="needs minutes: tests/projects/test_explain.py",
    ),
    Block("docs/features.md", "forward_intermediates(images)"),
    Block("docs/features.md", "features_only=True"),
    Block("docs/features.md", "layer_decay_groups"),
    Block(
        "docs/export.md", "--dynamic batch size", needs="needs minutes: tests/tools runs it small"
    ),
    Block("docs/export.md", "--random --size 64", (("tiny.pt2", "$OUT/tiny.pt2"),), slow=True),
    Block("docs/export.md", "import onnxruntime", (*MADE, ("2, 3, 256, 192", "1, 3, 32, 40"))),
    Block("docs/export.md", "torch.export.load(", MADE),
    Block("docs/export.md", "compiled.pt2 --compile", needs="needs minutes: tests/tools has it"),
    Block("docs/export.md", "aoti_load_package(", MADE, slow=True),
    Block("docs/export.md", "export_model.py", needs="needs a trained detector: tests/d2 has it"),
    Block(
        "docs/extract.md",
        "pip install -e '.[extract]'",
        (PHOTO, ("pip install -e '.[extract]'", ""), ("--out features", "--out $OUT/features")),
    ),
    Block("docs/extract.md", "mvitv2_small_16x4_k400 talks/", needs=TRAINED),
    Block("docs/extract.md", "read_features", needs="needs what the command before it leaves"),
    Block("docs/extract.md", "mvitv2_tools.extract.picture", needs=TRAINED),
    Block("docs/extract.md", "--engine ray", needs="needs a Ray cluster"),
    Block("docs/extract.md", "RAY_AUTH_MODE", needs="needs a Ray cluster"),
    Block("docs/extract.md", "extract_speed.py", needs="needs minutes and a quiet machine"),
    Block("docs/gpu.md", "logging.basicConfig()"),
    Block(
        "docs/learning.md",
        "projects.learning.run",
        needs="needs half an hour: tests/projects/test_learning.py runs it small",
    ),
    Block("docs/predict.md", PREDICT[0], (PREDICT, PHOTO)),
    Block("docs/predict.md", "create_transform(model.info)", (PHOTO,)),
    Block("docs/predict.md", "mvitv2 predict outputs/demo ", needs=TRAINED),
    *(Block(*row) for row in OWN_BLOCKS),
    Block(
        TRAINING,
        "optimizer._target_=mvitv2_d2",
        (("toy_mask_rcnn_mvitv2.py", f"toy_mask_rcnn_mvitv2.py {QUICK}"),),
        needs="detectron2",
        slow=True,
    ),
    Block(TRAINING, "LayerDecay, with_training", needs="detectron2"),
    Block(
        TRAINING,
        "MODEL.MVITV2.EMA_DECAY",
        (("BFLOAT16 True", f"BFLOAT16 True {SHORT}"),),
        needs="detectron2",
        slow=True,
    ),
    Block(TRAINING, "SOLVER.LAYER_DECAY", RUN_NET, "PySlowFast", slow=True),
    Block(TRAINING, "mvitv2_d2.sample", needs="detectron2"),
    Block("docs/video-demo.md", "make demo-video", (*VENV, CHECKOUT), "PySlowFast", slow=True),
    Block(
        "docs/video-demo.md",
        "projects.video.toy_kinetics OUT",
        (
            ("toy_kinetics OUT", "toy_kinetics $OUT/k --train 1 --val 1 --test 1 --stills 2"),
            ("toy_ava OUT", "toy_ava $OUT/a --train 1 --val 1"),
        ),
        slow=True,
    ),
    Block(VIDEO, "pip install -e '.[slowfast]'", needs=NETWORK),
    Block(VIDEO, "import connect", OWN_LOADER, "PySlowFast", slow=True),
    Block(
        VIDEO,
        "--opts DATA.PATH_TO_DATA_DIR $K400 DATA.PATH_PREFIX $K400 OUTPUT_DIR out\n",
        RUN_NET,
        "PySlowFast",
        slow=True,
    ),
    Block(VIDEO, "TRAIN.ENABLE False TEST.CHECKPOINT_FILE_PATH", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "MODEL.MODEL_NAME MViTv2", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "MaskFeat_PT_epoch_00300.pyth", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "MVITV2.IMAGE_CHECKPOINT", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "configs/ImageNet/MViTv2_S.yaml", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "configs/AVA/MViTv2_S_16x4.yaml", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "MViTv2_S_16x4_centre_test.yaml", RUN_NET, "PySlowFast", slow=True),
    Block(VIDEO, "TENSORBOARD.ENABLE True", RUN_NET, "PySlowFast", slow=True),
    Block("projects/benchmark/README.md", "make bench ", needs="needs minutes and a quiet machine"),
    Block(DETECTION, "lvis-api", needs=NETWORK),
    Block(DETECTION, "mask_rcnn_mvitv2_t_3x.py --num-gpus 8", CHECK, "detectron2", slow=True),
    Block(DETECTION, "optimizer.lr=2e-5", CHECK, "detectron2", slow=True),
    Block(
        DETECTION,
        "model_final_1a1c30.pkl",
        (*CHECK, ("=model_final_1a1c30.pkl", "=''")),
        "detectron2",
        slow=True,
    ),
    Block(DETECTION, "SOLVER.BASE_LR 0.02", CHECK, "detectron2", slow=True),
    Block(DETECTION, "check_config.py", needs="detectron2", slow=True),
    Block(
        DETECTION,
        "toy_coco\n",
        (
            ("toy_coco\n", "toy_coco --train 12 --val 6\n"),
            ("small.py\n", "small.py train.output_dir=$OUT/lazy\n"),
            ("small.opts)", "small.opts) OUTPUT_DIR $OUT/yaml"),
        ),
        needs="detectron2",
        slow=True,
    ),
]


def found() -> list[tuple[str, str, str]]:
    """(page, language, text) of each block that somebody runs."""
    blocks = [
        (str(page.relative_to(ROOT)), *match.groups())
        for page in PAGES
        for match in FENCE.finditer(page.read_text())
    ]
    return [block for block in blocks if block[1] not in OUTPUTS]


def rows_of(page: str, text: str) -> list[Block]:
    return [row for row in BLOCKS if row.page == page and row.text in text]


def parameter(page: str, language: str, text: str) -> object:
    slow = any(row.slow for row in rows_of(page, text))
    name = f"{page}-{text.splitlines()[0][:40]}"
    return pytest.param(page, language, text, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``$TORCH_HOME`` with files of T and S where the official ones would lie."""
    import torch

    from mvitv2_core import MViTClassifier, MViTConfig
    from mvitv2_core.checkpoint.hub import OFFICIAL

    home = tmp_path_factory.mktemp("torch_home")
    (home / "hub/checkpoints").mkdir(parents=True)
    for name, variant in (("mvitv2_tiny_in1k", "T"), ("mvitv2_small_in1k", "S")):
        state = MViTClassifier(MViTConfig.variant(variant)).state_dict()
        file = home / "hub/checkpoints" / OFFICIAL[name].url.rsplit("/", 1)[1]
        torch.save({"model_state": state}, file)
    return home


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install -e .`` makes importable, and no more of the repository."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        (folder / name).symlink_to(ROOT / name)
    if (ROOT / "mvitv2.egg-info").is_dir():  # names the commands
        (folder / "mvitv2.egg-info").symlink_to(ROOT / "mvitv2.egg-info")
    return folder


@pytest.mark.parametrize(("page", "language", "text"), [parameter(*block) for block in found()])
def test_block(
    page: str,
    language: str,
    text: str,
    weights: Path,
    installed: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    rows = rows_of(page, text)
    assert len(rows) == 1, f"BLOCKS must have one row for this block of {page}, has {rows}"
    row = rows[0]
    needs = row.needs
    if needs == "detectron2":
        pytest.importorskip("detectron2", reason="install detectron2 to run: make setup")
    elif needs == "PySlowFast":
        if not os.environ.get("PYSLOWFAST_ROOT"):
            pytest.skip("needs PySlowFast: set PYSLOWFAST_ROOT to a checkout")
    elif needs:
        pytest.skip(needs)
    root = os.environ.get("PYSLOWFAST_ROOT", "")
    env = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "SF": root}
    env |= {"TORCH_HOME": str(weights), "OUT": str(tmp_path), "DATA": str(tmp_path)}
    env |= {name: str(tmp_path) for name in ("K400", "IMAGENET", "AVA")}
    env |= {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    env |= {"S": str(weights / "hub/checkpoints/MViTv2_S_in1k.pyth")}
    env |= {"DEMO": f"--output {tmp_path} --train 8 --val 4 train.max_iter=2"}
    if "mvitv2 data" in text or "detection.yaml" in text:
        env["OWN"] = str(own_data(tmp_path / "own"))
    if "toy_coco" in text:
        env["DETECTRON2_DATASETS"] = str(tmp_path)
    elif row.needs == "detectron2" and "toy" in text:
        env["DETECTRON2_DATASETS"] = str(request.getfixturevalue("datasets"))
    swapped = text
    for old, new in row.swap:
        swapped = swapped.replace(old, new)
    if language == "yaml":
        (tmp_path / "configs").symlink_to(ROOT / "configs")
        (tmp_path / "mine.yaml").write_text(text)
        command = [sys.executable, "projects/detection/check_config.py", f"{tmp_path}/mine.yaml"]
    elif language == "python":
        command = [sys.executable, "-c", swapped]
    else:
        assert language in SHELL, f"{language}: no such kind of block is known"
        command = ["bash", "-euo", "pipefail", "-c", swapped]
    process = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=600,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-4000:]
    if language == "python" and "# {" in text:
        said = re.findall(r"^# +?(.*)$", text, re.MULTILINE)
        assert " ".join(line.strip() for line in said) in process.stdout


def test_forms_of_the_design_page() -> None:
    """Its table is that of the door."""
    from mvitv2_core.ops import FORMS

    page = (ROOT / "docs/design.md").read_text()
    expected = {name: ", ".join(form.name for form in forms) for name, forms in FORMS.items()}
    rows = re.findall(r"^\| (\w+) \| ([\w, ]+) \|$", page.split("## How a form")[1], re.MULTILINE)
    assert dict(rows[1:]) == expected


def test_every_row_has_a_block() -> None:
    blocks = found()
    for row in BLOCKS:
        assert sum(page == row.page and row.text in text for page, _, text in blocks) == 1, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_a_page_are_there(page: Path) -> None:
    """What a block runs and what a link points to."""
    text = page.read_text()
    assert " $(python" not in text, "without quotes a path with a space is two words"
    for _, block in FENCE.findall(text):
        for name in re.findall(r"(?<![\w/$])(?:configs|projects)/[\w/.]+\.(?:py|yaml|opts)", block):
            assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
