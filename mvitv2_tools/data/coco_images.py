"""The pictures of COCO jsons: each is opened once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from mvitv2_core.media import MediaError, open_image

from ..inputs import PICTURES
from .coco_check import Split
from .findings import Findings
from .parallel import map_files

# Ways to write an accented letter: as one character, or as two.
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


class Look(NamedTuple):
    """What a picture's file holds.

    Args:
        size: (width, height) upright; None where it cannot be read.
        stored: (width, height) before its EXIF orientation is applied.
        digest: of the file's bytes.
        deep: whether its values have more than 8 bits.
        error: why it cannot be read.
    """

    size: tuple[int, int] | None
    stored: tuple[int, int] | None = None
    digest: str = ""
    deep: bool = False
    error: str = ""


def look(path: str) -> Look:
    """Decode a picture."""
    from PIL import Image

    try:
        digest = hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
        size = open_image(path).size
        with Image.open(path) as image:
            return Look(size, image.size, digest, image.mode.startswith("I"))
    except MediaError as error:
        return Look(None, error=str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Look(None, error=error.strerror or str(error))


def crashed(path: str) -> Look:
    """What is known of a picture at which its process died."""
    return Look(None, error="its decoder crashed")


def check_pictures(splits: Sequence[Split], workers: int, findings: Findings) -> None:
    """Missing, unreadable, of another size, twice, in both splits, or in no json."""
    listed = {
        split.image_root: sorted(split.image_root.rglob("*"))
        for split in splits
        if split.image_root.is_dir()
    }
    jobs, known = [], set()
    for split in splits:
        by_name = {path.name.lower(): path for path in listed.get(split.image_root, [])}
        for image in split.images.values():
            path = split.file(image)
            known.add(path.resolve())
            if path.is_file():
                jobs.append((split, image, path))
            else:
                text = f"{path} is not there{_hint(path, split.image_root, by_name)}"
                findings.add("missing file", f"{split.name}, {image['file_name']}", text)
    looks = map_files(look, [str(job[2]) for job in jobs], crashed, workers, "pictures")
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for (split, image, _), seen in zip(jobs, looks, strict=True):
        where = f"{split.name}, {image['file_name']}"
        if seen.size is None:
            findings.add("unreadable image", where, seen.error)
            continue
        if seen.deep:
            findings.add("16-bit image", where, "white in training, right in mvitv2 predict")
        same[seen.digest].append((split.name, str(image["file_name"])))
        said = (image["width"], image["height"])
        if said != seen.size:
            turned = "; EXIF turns it, and the json has the size before that"
            text = f"{said[0]} x {said[1]} in the json, {seen.size[0]} x {seen.size[1]} upright"
            text += turned if said == seen.stored else ""
            findings.add("other size than the json says", where, text)
    for places in same.values():
        first, *others = places
        for other in others:
            kind = "duplicate image" if other[0] == first[0] else "train and val overlap"
            text = f"the same file content as {', '.join(first)}"
            text = "the json names this file twice" if other == first else text
            findings.add(kind, ", ".join(other), text)
    unread = {split.image_root for split in splits if not split.images}
    for root, paths in listed.items():
        for path in paths if root not in unread else ():
            if path.suffix.lower() in PICTURES and path.resolve() not in known:
                findings.add("file not in the json", str(path.relative_to(root)), f"in {root}")


def _hint(path: Path, root: Path, by_name: dict[str, Path]) -> str:
    """Where a file of this name is, if it is anywhere below the folder."""
    if not root.is_dir():
        return f"; there is no folder {root}"
    if "\\" in path.name:
        return "; its name has backslashes"
    near = by_name.get(path.name.lower())
    if near is not None:
        return f"; there is {near.relative_to(root)} in {root}"
    for name, what in (
        (unquote(path.name), "without the signs of an address (%20 and the like)"),
        *((normalize(form, path.name), f"in another Unicode form ({form})") for form in FORMS),
    ):
        near = by_name.get(name.lower())
        if near is not None:
            return f"; there is {str(near.relative_to(root))!a}, the same name {what}"
    return ""
