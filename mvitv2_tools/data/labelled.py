"""Labelled files: from a folder of classes, or from a csv."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .findings import Findings, Kind

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# Folders of these names look like splits as well. Which of the three each is, a person must say.
OTHER_SPLITS = ("training", "testing", "dev", "eval", "evaluation")
UNKNOWN_SPLIT = Kind("error", f"It is not used: it must be {', '.join(SPLITS)} or empty.")
KINDS = {
    "no data": Kind("error", "Nothing to train on."),
    "row without a label": Kind("error", "A row is a path and a label."),
    "unknown label": Kind("error", "It is not among the classes."),
    "unknown split": UNKNOWN_SPLIT,
    "one file, two labels": Kind("error", "Which one is right?"),
    "path that a list cannot hold": Kind("error", "PySlowFast's lists part at spaces or commas."),
    "missing file": Kind("error", "PySlowFast takes a random other file instead, silently."),
    "train and val overlap": Kind("error", "Validation would measure what was learnt by heart."),
    "class not in train": Kind("error", "It cannot be learnt."),
    "group on both sides": Kind("warning", "Clips of one video in train and val: --group."),
    "classes alike": Kind("warning", "They differ in capitals alone: are they one?"),
    "class not in val": Kind("warning", "It is not measured."),
    "file listed twice": Kind("warning", "It counts twice."),
    "same content twice": Kind("warning", "It counts twice."),
    "file outside of a class folder": Kind("warning", "It is not used."),
    "file of another kind": Kind("warning", "It is not used."),
}
PATH_COLUMNS = ("path", "file", "filename", "video", "image")
LABEL_COLUMNS = ("label", "class", "category", "action")
# Clips of one video, by common names: UCF-101 and HMDB-51 (v_Name_g01_c02), words with a number
# (match_clip3, match-part-2, match-Scene-001), and Kinetics (id_000012_000022).
CLIP_OF = re.compile(
    r"(.+_g\d+)_c\d+"
    r"|(.+?)[ _.-]*(?:clip|part|segment|seg|scene|shot|chunk)[ _.-]*\d+"
    r"|(.+)_\d{6}_\d{6}",
    re.IGNORECASE,
)


class Item(NamedTuple):
    """One labelled file.

    Args:
        path: where it is.
        label: the class's name.
        group: files of one group stay on one side of a split.
        split: "train", "val" or "test"; "" where it is to be drawn.
        row: where it was read: the path below the folder, or the row of the csv.
    """

    path: Path
    label: str
    group: str
    split: str = ""
    row: str = ""


@dataclass
class Labelled:
    """Items, and names of classes in the order of their numbers."""

    items: list[Item] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


def group_of(place: Path, inside: Path, pattern: re.Pattern[str] | None) -> str:
    """What a file was cut from.

    Args:
        place: below the folder of all, or as a csv has it.
        inside: below its class's folder; for a csv its name.
        pattern: a person's own, searched in ``place``: its first group, or all that matched.

    Returns:
        What the pattern finds; else the folder that the file shares with others of its class; else
        what its name says (``CLIP_OF``); else ``place``, which no other file has.
    """
    if pattern is not None:
        found = pattern.search(place.as_posix())
        if found is not None:
            return found[1] if pattern.groups else found[0]
        return place.as_posix()
    if len(inside.parts) > 1:
        return inside.parts[0]
    found = CLIP_OF.fullmatch(inside.stem)
    return next(filter(None, found.groups())) if found else place.as_posix()


def read_folder(
    root: Path, endings: Iterable[str], pattern: re.Pattern[str] | None, findings: Findings
) -> Labelled:
    """``root/CLASS/...``, or ``root/train/CLASS/...`` with ``val`` and perhaps ``test`` beside.

    Raises:
        ValueError: all folders look like splits, but they are not called so.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    known = frozenset(endings)
    alike = {**SPLITS, **dict.fromkeys(OTHER_SPLITS, "")}
    named = {p: alike[p.name.lower()] for p in folders if p.name.lower() in alike}
    # A class may be called "train": then others with files stand beside it.
    beside = any(_has(path, known) for path in folders if path not in named)
    splits = set(named.values())
    parted = {"train", "val"} <= splits and "" not in splits and not beside
    deep = not any(p.suffix.lower() in known for path in named for p in path.iterdir())
    if splits & {"train", ""} and deep and not beside and not parted:
        raise ValueError(
            f"{root}: {', '.join(path.name for path in named)} look like splits, which must be "
            f"called train and val (and test): rename them, or give the folders of training and "
            f"of validation as SOURCE and VAL"
        )
    labelled = Labelled()
    for home, split in named.items() if parted else [(root, "")]:
        for folder in sorted(home.iterdir()):
            if folder.is_dir() and folder.name[0] != ".":
                files = _below(folder, root, known, findings)
                for path in files:
                    place = path.relative_to(root)
                    group = group_of(place, path.relative_to(folder), pattern)
                    labelled.items.append(Item(path, folder.name, group, split, str(place)))
                labelled.classes.append(folder.name)
            elif folder.suffix.lower() in known:
                row = str(folder.relative_to(root))
                findings.add("file outside of a class folder", row, "it has no label")
    labelled.classes = sorted(set(labelled.classes))
    return labelled


def _has(folder: Path, known: frozenset[str]) -> bool:
    """Whether there is a file with one of these endings somewhere below."""
    return any(path.suffix.lower() in known for path in folder.rglob("*"))


def _below(folder: Path, root: Path, known: frozenset[str], findings: Findings) -> list[Path]:
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix.lower() in known:
            files.append(path)
        else:
            text = f"its ending {path.suffix!r} is not known"
            findings.add("file of another kind", str(path.relative_to(root)), text)
    return files


def read_split(value: str | None, split: str, row: str, findings: Findings) -> str | None:
    """A csv's row's split: "" where it is to be drawn, None where it is unknown, and found so.

    Args:
        value: of its column ``split``; None where there is none.
        split: of all rows, whatever the column says; "" for the column's.
        row: where it was read.
        findings: where an unknown one goes.
    """
    given = (value or "").strip().lower()
    if split or not given:
        return split
    if given not in SPLITS:
        findings.add("unknown split", row, f"{value!r} is not one of {', '.join(SPLITS)}")
    return SPLITS.get(given)


def read_csv(
    file: Path,
    root: Path,
    split: str,
    classes: Sequence[str] | None,
    pattern: re.Pattern[str] | None,
    findings: Findings,
) -> Labelled:
    """Rows of a path and a label: PySlowFast's own lists, or a csv with a header.

    Args:
        file: columns parted by commas, or path and label by a space. A header is one that names
            a column of ``PATH_COLUMNS`` and one of ``LABEL_COLUMNS``, perhaps ``split``, ``group``.
        root: folder that relative paths start at.
        split: of all rows; "" for the column's, or to be drawn.
        classes: names in the order of their numbers; None for the labels found, in order.
        pattern: see ``group_of``; a column ``group`` wins.
        findings: where wrong rows go.

    Raises:
        ValueError: it cannot be read, or has more than two columns and no header.
    """
    names, rows = _read_rows(file)
    items: list[Item] = []
    for number, cells in rows:
        row = f"{file.name}, row {number}"
        path, label = cells.get(names[0], ""), cells.get(names[1], "")
        row += f", {path}" if path else ""
        if not path or not label:
            findings.add("row without a label", row, f"{' '.join(filter(None, cells.values()))!r}")
            continue
        own = read_split(cells.get("split"), split, row, findings)
        if own is None:
            continue
        group = cells.get("group") or group_of(Path(path), Path(Path(path).name), pattern)
        items.append(Item(root / path, label, group, own, row))
    numbered = all(re.fullmatch(r"\d+", item.label) for item in items) and bool(items)
    if classes is None:
        found = {item.label for item in items}
        largest = max(map(int, found)) if numbered else 0
        classes = [str(k) for k in range(largest + 1)] if numbered else sorted(found)
    known, kept = set(classes), []
    for item in items:
        label = item.label
        if label.isdigit() and label not in known and int(label) < len(classes):
            label = classes[int(label)]
        if label not in known:
            text = f"{label!r} is not one of the {len(classes)} classes"
            findings.add("unknown label", item.row, text)
            continue
        kept.append(Item(item.path, label, item.group, item.split, item.row))
    return Labelled(kept, list(classes))


def _read_rows(file: Path) -> tuple[tuple[str, str], list[tuple[int, dict[str, str]]]]:
    """Names of the path's and the label's columns, and the rows by their numbers from 1."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: must be saved as UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise ValueError(f"{file}: is empty")
    if all(";" in line and "," not in line for _, line in filled):
        raise ValueError(f"{file}: its columns must be parted by commas, not by semicolons")
    if not any("," in line for _, line in filled):
        pairs = [(number, (line.strip().rsplit(None, 1) + [""])[:2]) for number, line in filled]
        rows = [(number, {"path": path, "label": label}) for number, (path, label) in pairs]
        if rows[0][1]["path"] in PATH_COLUMNS and rows[0][1]["label"] in LABEL_COLUMNS:
            rows = rows[1:]
        return ("path", "label"), rows
    cells = [(number, [c.strip() for c in next(csv.reader([line]))]) for number, line in filled]
    header = [cell.lower() for cell in cells[0][1]]
    path = next((name for name in PATH_COLUMNS if name in header), "")
    label = next((name for name in LABEL_COLUMNS if name in header), "")
    if path and label:
        return (path, label), [(n, dict(zip(header, row, strict=False))) for n, row in cells[1:]]
    widest = max(len(row) for _, row in cells)
    if widest > 2:
        raise ValueError(
            f"{file}: has {widest} columns: its first row must name them, one of "
            f"{', '.join(PATH_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)}, got {header}"
        )
    return ("path", "label"), [(n, dict(zip(("path", "label"), r, strict=False))) for n, r in cells]


def check_items(labelled: Labelled, findings: Findings) -> None:
    """Files listed twice, with two labels, on both sides, or that are not there."""
    seen: dict[Path, Item] = {}
    for item in labelled.items:
        first = seen.setdefault(item.path.resolve(), item)
        if first is not item and first.label != item.label:
            text = f"{first.label!r} in {first.row}, {item.label!r} in {item.row}"
            findings.add("one file, two labels", str(item.path), text)
        elif first is not item and first.split == item.split:
            findings.add("file listed twice", str(item.path), f"{first.row} and {item.row}")
        if not item.path.is_file():
            findings.add("missing file", item.row, f"{item.path} is not there")
    spelt: dict[str, str] = {}
    for name in labelled.classes:
        alike = spelt.setdefault(name.casefold(), name)
        if alike != name:
            findings.add("classes alike", repr(name), f"and {alike!r}")
    if not labelled.items:
        findings.add("no data", "all", "not one labelled file was found")
    sides: dict[str, Item] = {}
    for item in labelled.items:
        other = sides.setdefault(item.group, item)
        if not other.split or not item.split or (other.split == "train") == (item.split == "train"):
            continue
        same = other.path.resolve() == item.path.resolve()
        text = "the same file" if same else f"its group {item.group!r}"
        kind = "train and val overlap" if same else "group on both sides"
        findings.add(kind, f"{item.split}, {item.row}", f"{text} is in {other.split}: {other.row}")


def check_split(labelled: Labelled, findings: Findings) -> None:
    """Classes that are missing on one side; call it when every item has its split."""
    for side in ("train", "val"):
        counts = Counter(item.label for item in labelled.items if item.split == side)
        for name in labelled.classes:
            if not counts[name] and labelled.items:
                total = len({item.group for item in labelled.items if item.label == name})
                findings.add(f"class not in {side}", repr(name), f"{total} groups of files in all")
