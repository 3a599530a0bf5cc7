"""The table of docs/robustness.md: what was tried, how often by each suite, and what came out.

``make test TEST="--keep-counts default"``, ``make test TEST="-m slow --keep-counts slow"`` and
``make soak SOAK="--keep-counts soak"`` count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SUITES = {"default": "`make test`", "slow": "`-m slow`", "soak": "`make soak`"}
NOT_RUN = "-"


class Row(NamedTuple):
    """One kind of fault.

    Args:
        fault: what was done.
        claims: what the tests count for it, summed.
        outcome: what happened.
    """

    fault: str
    claims: tuple[str, ...]
    outcome: str


ROWS = [
    Row(
        "SIGKILL of detectron2's trainers in a step, in a checkpoint's write, in the write of "
        "`last_checkpoint`, in an evaluation; then `--resume`",
        ("kills survived, detectron2",),
        "every run ended; every loss and the last checkpoint equal the uninterrupted run's, bit "
        "for bit; kills in a write used to end the run for good",
    ),
    Row(
        "SIGKILL of PySlowFast's trainer in a step, in a checkpoint's write, in an evaluation; "
        "then its own resume",
        ("kills survived, PySlowFast",),
        "the same",
    ),
    Row(
        "Two ranks under PyTorch's launcher (DDP over gloo, a plain loop with this project's "
        "writes): SIGKILL of either rank, of both, of the launcher, in a step or a checkpoint's "
        "write; then a resume",
        ("kills on two ranks survived, plain loop",),
        "whoever was left ended, where it waited for a peer that was gone when the process group's "
        "timeout was over; every loss and the last checkpoint equal the uninterrupted run's, bit "
        "for bit",
    ),
    Row(
        "Two ranks of detectron2's `lazyconfig_train_net.py` and of PySlowFast's `run_net.py`: "
        "SIGKILL of one while the other writes a checkpoint, of both, of the launcher; then the "
        "trainer's own resume",
        ("kills on two ranks survived, detectron2", "kills on two ranks survived, PySlowFast"),
        "the same",
    ),
    Row(
        "Either trainer: the disk full or read-only at a checkpoint, a data loader's worker "
        "killed, NaN in an input; then a resume",
        (
            "runs stopped by other faults and resumed, detectron2",
            "runs stopped by other faults and resumed, PySlowFast",
        ),
        "the last line names the cause (NaN: the step); the old checkpoint whole; the resumed run "
        "equal, bit for bit",
    ),
    Row(
        "SIGKILL of `mvitv2 extract` at chosen and at random moments, clips and stills, three "
        "formats; then the end",
        (
            "kills of an extraction at a moment of a file, resumed to the same bytes",
            "kills of an extraction of clips at random moments",
            "kills of an extraction of stills at random moments",
        ),
        "every row there once, files equal to an uninterrupted run's byte for byte",
    ),
    Row(
        "What this project writes, `mvitv2 convert` and a trainer's write, over old files on a "
        "full or read-only disk",
        ("writes on a full or read-only disk, old file whole",),
        "one line with file and cause; the old file whole, nothing left over; torch's \"unexpected "
        "pos\" and safetensors' own error had hidden the cause",
    ),
    Row(
        "One flipped bit in a tensor of a PyTorch file, also before both trainers resume from it",
        ("flipped bits of tensors in checkpoints, refused",),
        "refused by the tensor's member; `torch.load` takes all of them",
    ),
    Row(
        "Clocks: times of change of all checkpoints scattered by a year either way",
        ("last checkpoints found among files of scattered times",),
        "the last checkpoint was found by its name",
    ),
    Row(
        "SIGKILL of what this project writes: checkpoints in three formats, `mvitv2 convert`, a "
        "trainer's write",
        ("writers killed, file whole",),
        "the file under its name was always whole",
    ),
    Row(
        "DDP on gloo ranks: subsets of `out_features` with activation checkpointing on and off and "
        "static graph on and off, accumulation, uneven batches; image and clip classifiers; FSDP "
        "(both kinds) by block",
        ("distributed runs equal to one process",),
        "gradients of the joint batch to 1e-12 of the largest, no unused parameter; one shared "
        "gradient buffer found and parted",
    ),
    Row(
        "Distributed checkpoints from 2 or 4 ranks to 1 to 4",
        ("sharded checkpoints loaded on another number of ranks, bit-equal",),
        "state bit-equal",
    ),
    Row(
        "Drawn inputs: sizes from one pixel, aspect ratios to 1:20, 0 to 4 images, 1 to 40 frames, "
        "memory formats, four dtypes; core, detectron2, PySlowFast",
        ("inputs drawn, core", "inputs drawn, detectron2", "inputs drawn, PySlowFast"),
        "equal to plain arithmetic; PyTorch 2.14.1's bfloat16 CPU gradients of convolutions, which "
        "read or wrote foreign memory in pools and in patches, are kept away from: those "
        "convolutions go by way of float32",
    ),
    Row(
        "Drawn sizes of pictures and of models' inputs, square or not, for images and clips",
        ("sizes drawn, of pictures and models' inputs",),
        "what comes out is the whole crop; of inputs that are not square some models had got a "
        "sliver",
    ),
    Row(
        "A wrong value in a constructor argument, a LazyConfig, a YAML or a PySlowFast key",
        ("wrong settings refused",),
        "refused at construction, by name",
    ),
    Row(
        "Data of one's own with a fault: COCO files, labelled videos, AVA boxes",
        (
            "faults of COCO jsons found and named",
            "faults of labelled videos found and named",
            "faults of AVA boxes found and named",
        ),
        "`mvitv2 data` names each, with its file",
    ),
    Row(
        "A hook, a hook that changes outputs, a replaced `forward`, an adapter, a parametrization "
        "or a weight with arithmetic of its own on each part of a model",
        ("hooks, replaced modules, parametrizations: honoured",),
        "each fires and counts; 57 tests failed before fast paths stepped aside for them and for "
        "the next row",
    ),
    Row(
        "`torch.func` and forward-mode gradients",
        ("torch.func and forward-mode gradients: equal to plain autograd",),
        "equal to plain autograd; tangents through frozen models had been lost silently",
    ),
    Row(
        "deepcopy, pickle, `torch.save`, EMA, state dicts, a stop and resume from them",
        ("lifecycle: copies, EMA copies and files equal their source",),
        "outputs and gradients bit-equal to the source's, averages to 1e-12",
    ),
    Row(
        "Moves between float32, float64, bfloat16, float16 and the meta device; training after "
        "other modes",
        ("lifecycle: moves between devices and dtypes, built on the meta device",),
        "equal to a fresh model, bit for bit",
    ),
    Row(
        "Frozen parts, with activation checkpointing and without",
        ("lifecycle: frozen parts leave the others' gradients unchanged, checkpointing or not",),
        "gradients of the rest to 1e-10 of those without freezing; the two bit-equal",
    ),
    Row(
        "Forward and backward passes in four threads at once, in forked and spawned workers",
        ("lifecycle: threads and processes at work at once",),
        "equal to one after another; a fork while another thread held the cache had hung",
    ),
    Row(
        "Half precision on large, equal, zero and unnormalised inputs",
        ("autocast: finite where float32 is, in outputs and gradients",),
        "finite, gradients included",
    ),
    Row(
        "Half precision over 20,480 keys",
        ("autocast: attention over 20,480 keys about as exact as the plain arithmetic",),
        "finite; errors at most 4 times those of the plain arithmetic",
    ),
    Row(
        "Windows filled up with zeros",
        ("padded windows: zeros that fill them take part in the softmax",),
        "equal to plain arithmetic over the filled window",
    ),
    Row(
        "Gradients of attention, pools, MLP and blocks against differences, float64",
        ("gradients checked in float64 against differences",),
        "equal",
    ),
    Row(
        "Training twice from a seed, drop path on; in another process; with checkpointing",
        ("determinism: pairs of equal curves of 20 steps with drop path",),
        "20 losses equal bit for bit",
    ),
    Row(
        "Training iterations over 25 sizes",
        ("memory: training iterations over changing sizes, resident memory bounded",),
        "resident memory less than 64 MiB above that after the first (the bound of the tables of "
        "positions); as many tensors",
    ),
]


def table(results: dict[str, Any]) -> list[list[str]]:
    """The lines of the table; ``-`` where no suite tries a row, or none was counted yet."""
    lines = [["fault", *SUITES.values(), "outcome"]]
    for row in ROWS:
        counts = []
        for suite in SUITES:
            found = [results["suites"][suite].get(claim, {}) for claim in row.claims]
            count = sum(test["count"] for tests in found for test in tests.values())
            counts.append(f"{count:,}" if count else NOT_RUN)
        lines.append([row.fault, *counts, row.outcome])
    return lines
