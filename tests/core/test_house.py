"""The house: who imports whom, what the model side does not speak of, definitions alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mvitv2_core import ops
from tests.compare import error, gradient_error, loss_of
from tests.small import KINDS, small_input, small_model

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "mvitv2_core"
ADAPTERS = ("mvitv2_d2", "mvitv2_slowfast", "mvitv2_tools")
# What may stand in core beside the standard library and torch, imported inside of functions where
# a user asks for what needs it.
LAZY = {"numpy", "safetensors", "triton", "iopath", "filelock", "PIL", "av", "torchvision"}


DOOR = {"mvitv2_core.ops", "mvitv2_core.forms"}  # and its table


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, Path]:
    return {name_of(file): file for file in CORE.rglob("*.py")}


def imports(file: Path, everywhere: bool = True) -> Iterator[str]:
    """Full names that a file imports; of relative imports too."""
    tree = ast.parse(file.read_text())
    package = name_of(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{parent}.{alias.name}"
                yield full if full in modules() else parent


@pytest.mark.parametrize("name", modules())
def test_core_imports_torch_alone(name: str) -> None:
    file = modules()[name]
    allowed = {*sys.stdlib_module_names, "torch", "mvitv2_core"}
    if "triton" in name and name.endswith(("_kernels", "_backward")):
        allowed |= {"triton"}  # imported where a kernel is launched, and nowhere else
    for everywhere in (False, True):
        found = {module.split(".")[0] for module in imports(file, everywhere)}
        assert found <= (allowed | LAZY if everywhere else allowed), name


@pytest.mark.parametrize("name", sorted(modules().keys() - DOOR))
def test_only_the_door_imports_fast_forms(name: str) -> None:
    """And no form imports another: what several share is named."""
    fast = "mvitv2_core.fast"
    found = {module for module in imports(modules()[name]) if module.startswith(f"{fast}.")}
    if name.startswith(fast):
        shared = {"context", "fused_kernels", "gradients", "memory", "precision"}
        shared |= {"triton_device", "window_chunks"}
        form = "_".join(name.split(".")[2:3]).split("_")[:2]  # a form may have several files
        parts = {module for module in found if module.split(".")[2].split("_")[:2] == form}
        assert found <= {f"{fast}.{module}" for module in shared} | parts | {fast}, name
    else:
        assert not found, name


def test_the_core_has_no_import_cycle() -> None:
    graph = {
        name: {m for m in imports(file, everywhere=False) if m in modules() and m != name}
        for name, file in modules().items()
        if file.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", ["model", "block", "attention"])
def test_the_model_speaks_of_the_model(name: str) -> None:
    """No device, dtype, autocast, tracer or hook is mentioned there."""
    words = r"\b(device|cuda|cpu|dtype|float32|bfloat16|half|autocast|tracing|tracer|hook)"
    found = re.findall(words, (CORE / f"{name}.py").read_text().lower())
    assert not found


def sources() -> dict[str, ast.Module]:
    """{dotted name: syntax tree} of every file of the tests."""
    files = (ROOT / "tests").rglob("*.py")
    return {name_of(file): ast.parse(file.read_text()) for file in files}


def test_no_test_module_is_imported() -> None:
    """Nor by ``projects``. What several files need stands in a helper."""
    projects = {name_of(f): ast.parse(f.read_text()) for f in (ROOT / "projects").rglob("*.py")}
    for name, tree in (sources() | projects).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                words = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                ours = node.level > 0 or words[0] == "tests"
            elif isinstance(node, ast.Import):
                words = [word for alias in node.names for word in alias.name.split(".")]
                ours = "tests" in words
            else:
                continue
            taken = [word for word in words if word.startswith("test_")]
            assert not (ours and taken), f"{name}, line {node.lineno}: {taken}"


def test_files_are_short() -> None:
    """Of the packages and of projects: what grows over 300 lines is two things."""
    folders = ["mvitv2_core", *ADAPTERS, "projects"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    long = [str(file) for file in files if len(file.read_text().splitlines()) > 300]
    assert len(files) > 100 and not long


def returns(node: ast.AST) -> Iterator[ast.Return]:
    """Those of a function itself, without those of the functions inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield from returns(child)


def test_no_test_returns() -> None:
    """A case with nothing to check is no parameter of the test, or skips with its reason."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                lines = [found.lineno for found in returns(node)]
                assert not lines, f"{name}.{node.name}, lines {lines}"


def test_core_imports_no_adapter() -> None:
    for file in CORE.rglob("*.py"):
        assert not any(module.startswith(ADAPTERS) for module in imports(file)), file


# What makes a trainer's model of its config: there, and inside of functions.
MODEL_MAKERS = {"mvitv2_tools.find_model", "mvitv2_tools.detectron2_model"}


@pytest.mark.parametrize("package", ["mvitv2_core", *ADAPTERS])
def test_nobody_imports_an_adapter(package: str) -> None:
    """But ``projects/`` and the tests, the adapter itself, and what makes a trainer's model."""
    others = tuple({"mvitv2_d2", "mvitv2_slowfast"} - {package})
    files = {name_of(file): file for file in (ROOT / package).rglob("*.py")}
    lazy, eager = (
        {name for name, f in files.items() if any(m.startswith(others) for m in imports(f, deep))}
        for deep in (True, False)
    )
    assert files and not eager
    assert lazy == (MODEL_MAKERS if package == "mvitv2_tools" else set())


@pytest.mark.parametrize("kind", KINDS)
def test_reference_equals_fast(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients of the definitions alone and of the forms that would be chosen."""
    seen: list[str] = []
    choose = ops.choose

    def watched(operation: str, *call: object) -> ops.Form:
        form = choose(operation, *call)
        seen.append(form.name)
        return form

    monkeypatch.setattr(ops, "choose", watched)
    outputs, models = [], []
    for reference in (True, False):
        monkeypatch.setattr(ops, "REFERENCE", reference)
        model = small_model(kind).double()
        outputs.append(model(small_input(kind, dtype=torch.float64)))
        assert (set(seen) == {"plain"}) == reference
        loss_of(outputs[-1]).backward()
        models.append(model)
        seen.clear()
    assert error(outputs[1], outputs[0]) < 1e-12
    assert gradient_error(models[1], models[0]) < 1e-10


def test_the_variables() -> None:
    """``MVITV2_REFERENCE`` and the forced forms are read when the package is imported."""
    code = (
        "import torch; from mvitv2_core import MViTClassifier, MViTConfig, ops\n"
        "seen = set(); choose = ops.choose\n"
        "def watched(*call):\n"
        "    form = choose(*call); seen.add((call[0], form.name)); return form\n"
        "ops.choose = watched\n"
        "MViTClassifier(MViTConfig.variant('T', (32, 32)))(torch.zeros(1, 3, 32, 32))\n"
        "print(sorted(name for operation, name in seen if operation == 'attention'))"
    )

    def run(**environment: str) -> subprocess.CompletedProcess:
        env = {"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
        )

    assert run().stdout == "['chunked']\n"
    assert run(MVITV2_REFERENCE="1").stdout == "['plain']\n"
    assert run(MVITV2_ATTENTION="folded").stdout == "['folded']\n"
    wrong = run(MVITV2_ATTENTION="flash")
    assert "MVITV2_ATTENTION must be one of" in wrong.stderr and "'flash'" in wrong.stderr


@pytest.mark.parametrize("kind", ["image", "clip with class token"])
def test_private_names_of_pytorch_may_go(
    kind: str, monkeypatch: pytest.MonkeyPatch, tally: Callable[..., None]
) -> None:
    """Where a release has lost one, results stay."""
    model, x = small_model(kind).double(), small_input(kind, dtype=torch.float64)
    expected = model(x)
    loss_of(expected).backward()
    grads = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    from torch.autograd import forward_ad
    from torch.nn.modules import module as nn_module

    lost: list[tuple[object, str]] = [
        (torch._C, "_are_functorch_transforms_active"),
        (forward_ad, "_current_level"),
        (nn_module, "_has_any_global_hook"),
        (torch.ops.aten, "_softmax_backward_data"),
    ]
    for owner, name in lost:
        with monkeypatch.context() as patch:
            if owner is torch.ops.aten:
                patch.setattr(owner, name, None)
            else:
                patch.delattr(owner, name, raising=False)  # releases have lost some
            model.zero_grad()
            got = model(x)
            if owner is torch.ops.aten:
                loss_of(got).backward()
        if owner is not torch.ops.aten:  # PyTorch's own backward pass has need of the others
            loss_of(got).backward()
        assert error(got, expected) < 1e-12
        for p, g in zip(model.parameters(), grads, strict=True):
            assert error(p.grad, g) < 1e-9 or g.abs().max() < 1e-12
        tally("private names of PyTorch that may go")
