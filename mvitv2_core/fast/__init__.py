"""Fast forms of the operations that ``plain`` defines, one file each; none knows another.

They take tensors, never modules, so that whatever a user hangs on a module works. Only ``forms``
imports them, and says when each runs. Beside the forms stand what several of them share:
``context`` (what looks on), ``precision`` (autocast), ``gradients`` (second derivatives),
``memory`` (constant tensors), ``fused_kernels`` and ``window_chunks``; and ``workarounds`` for
faults of PyTorch.
"""
