"""Answers as text for a person, and as JSON for a program."""

from __future__ import annotations

import json
from typing import Any

from .answers import Answer


def to_text(answer: Answer) -> str:
    """A heading and one line for each label or object."""
    heading = answer.part.input.path
    if answer.part.span is not None:
        heading += f"  {clock(answer.part.span[0])} to {clock(answer.part.span[1])}"
    if answer.things is None:
        rows = [f"{100 * label.probability:7.2f} %  {label.text}" for label in answer.labels]
        return "\n".join([heading, *rows])
    rows = [
        f"{100 * thing.score:7.2f} %  {thing.text:<16} "
        f"{', '.join(f'{side:.0f}' for side in thing.box)}"
        for thing in answer.things
    ]
    rows += [f"{100 * r.share:7.2f} %  of the picture: {r.text}" for r in answer.stuff or []]
    return "\n".join([heading, *(rows or ["         nothing found"])])


def to_json(answer: Answer) -> str:
    """One line; "error" says what was wrong with an input that has no answer."""
    part = answer.part
    row: dict[str, Any] = {"input": part.input.path}
    if part.span is not None:
        row["seconds"] = [round(second, 3) for second in part.span]
    if part.error:
        row["error"] = part.error
    elif answer.things is None:
        row["labels"] = [
            {
                "index": label.index,
                "label": label.name or None,
                "probability": round(label.probability, 6),
            }
            for label in answer.labels
        ]
    else:
        row["objects"] = [
            {
                "index": thing.index,
                "label": thing.name or None,
                "score": round(thing.score, 6),
                "box": [round(side, 4) for side in thing.box],
                **({} if thing.mask is None else {"mask": thing.mask}),
            }
            for thing in answer.things
        ]
    if answer.stuff is not None:
        row["stuff"] = [
            {
                "index": region.index,
                "label": region.name or None,
                "share": round(region.share, 6),
                "mask": region.mask,
            }
            for region in answer.stuff
        ]
    return json.dumps(row)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03.4."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
