"""The toy data and the runner of subprocesses."""

from tests.d2.running import datasets, run

__all__ = ["datasets", "run"]
