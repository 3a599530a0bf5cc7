"""``mvitv2 extract``: features of pictures and videos into files, however many there are.

In this order: ``command`` reads the command line, ``settings`` says what decides the bits of a
row, ``extractor`` is the model with its inputs and features, ``folder`` keeps what is planned and
what is done, ``work`` makes the rows of a task, ``formats`` writes them, and ``ray_engine`` lets a
Ray cluster do the tasks. ``read`` gives the rows back, and ``picture`` draws them.
"""

from .read import Extracted, read_features

__all__ = ["Extracted", "read_features"]
