"""PySlowFast's own ``tools/run_net.py``, unmodified, with MViTv2 registered.

    python -m mvitv2_slowfast.run_net --cfg FILE [--opts KEY VALUE ...]

The ranks that PySlowFast spawns import this file again as their main module, and with it the
package, whose import applies the cures and registers the model: see ``plugin.connect``.
"""

from __future__ import annotations

import sys

from mvitv2_slowfast import compat
from mvitv2_slowfast.locate import HOW_TO_GET, PySlowFastError
from mvitv2_slowfast.plugin import connect


def main() -> None:
    """Run PySlowFast's main with this command's arguments; exit code 2 without PySlowFast."""
    try:
        root = connect()
    except PySlowFastError:
        sys.exit(2)  # the package's import has said why
    if root is None:
        print(f"PySlowFast was not found. To get it: {HOW_TO_GET}.", file=sys.stderr)
        sys.exit(2)
    if not (root / "tools" / "run_net.py").is_file():
        print(
            f"PySlowFast in {root} has no tools/run_net.py: set PYSLOWFAST_ROOT to a checkout.",
            file=sys.stderr,
        )
        sys.exit(2)
    for line in compat.applied:
        print(f"mvitv2_slowfast: {line}", file=sys.stderr)
    from vision.fair.slowfast.tools.run_net import main as run

    run()


if __name__ == "__main__":
    main()
