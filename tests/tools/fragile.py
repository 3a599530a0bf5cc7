"""A look at a file that kills its process, as a decoder in C may."""

from __future__ import annotations

import os


def look(item: int) -> int:
    """Twice the item; 17 ends the process."""
    if item == 17:
        os._exit(1)
    return 2 * item


def crashed(item: int) -> int:
    """What is known of it then."""
    return -item
