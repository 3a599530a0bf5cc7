"""The toy data and the runner of subprocesses that the detectron2 tests use."""

from tests.d2.running import datasets, run

__all__ = ["datasets", "run"]
