"""Docstrings as the site's parser wants them (mkdocs.yml: mkdocstrings' ``extensions``).

This project says "stride_q, stride_kv: strides of the pools" of arguments that go together; the
parser knows one name an entry.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

TOGETHER = re.compile(r"^ {4}(\w+(?:, \w+)+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class ApartArguments(Extension):
    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = TOGETHER.sub(apart, obj.docstring.value)


def apart(entry: re.Match[str]) -> str:
    """The same text under each name."""
    return "\n".join(f"    {name}: {entry[2]}" for name in entry[1].split(", "))
