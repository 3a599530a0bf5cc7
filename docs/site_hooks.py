"""Pages of the site that lie outside of docs/, and their links (mkdocs.yml: ``hooks``).

Every document is written for its own place in the repository, with relative links. The site shows
some under other addresses, so links are turned: to the page where the file is one, else to the
repository where ``MVITV2_REPO_URL`` says where that lies, else into plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# {file of the repository: its page}
PAGES = {
    "MODEL_ZOO.md": "model-zoo.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "projects/benchmark/README.md": "benchmark.md",
    "projects/detection/README.md": "detection-recipes.md",
    "tests/README.md": "tests.md",
}
ALSO = {**PAGES, "README.md": "index.md"}  # the site's first page says what README says
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")

LIST = re.compile(r"([-*]|\d+\.) ")
BARE = re.compile(r"<(https://[^>\s]+/([^/>\s]+))>")  # a file's long address, by the file's name


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    name = page.file.src_uri
    source = next((file for file, made in PAGES.items() if made == name), f"docs/{name}")

    def turned(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        text = LINK.sub(turned, text) if "](" in text else text
        if re.match(r"(https?:|mailto:|#)", target):
            return f"{mark}[{text}]({target})"
        file, _, anchor = target.partition("#")
        to = link(posixpath.normpath(posixpath.join(posixpath.dirname(source), file)), name, config)
        return f"{mark}[{text}]({to}{'#' + anchor if anchor else ''})" if to else text

    parts = FENCE.split(markdown)  # every second one is a fenced block
    parts[::2] = [BARE.sub(r"[\2](\1)", LINK.sub(turned, set_off(part))) for part in parts[::2]]
    return "".join(parts)


def set_off(text: str) -> str:
    """A blank line before each list and table: code hosts need none, the site's parser does."""
    lines = text.split("\n")
    for index in range(len(lines) - 1, 0, -1):
        before = lines[index - 1]
        begins = LIST.match(lines[index]) and not (LIST.match(before) or before.startswith(" "))
        begins = begins or (lines[index].startswith("|") and not before.startswith("|"))
        if begins and (before.strip() or index == 1):  # text begins at the end of a fence
            lines.insert(index, "")
    return "\n".join(lines)


def link(path: str, page: str, config: Any) -> str:
    """From a page of the site to a file of the repository; "" where it cannot be had."""
    inside = ALSO.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
    if inside and not inside.endswith(".py"):
        return posixpath.relpath(inside, posixpath.dirname(page) or ".")
    return f"{config.repo_url.rstrip('/')}/blob/main/{path}" if config.repo_url else ""
