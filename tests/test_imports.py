"""The table of folders in docs/architecture.md, checked by walking every import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folder to what it may import of ours.  Root types are the leaf modules that every folder shares.
ROOT_TYPES = {"errors", "records", "units", "shape", "plan", "target", "manifest", "progress", "files", "telemetry"}
ROOT_TYPES |= {"sparsity", "hashes", "export_record", "runtime_versions"}
ALLOWED: dict[str, set[str]] = {
    "profiles": {"errors", "records", "profiles"},
    "benchmark": ROOT_TYPES | {"profiles", "benchmark"},
    "prune": ROOT_TYPES | {"prune"},
    "export": ROOT_TYPES | {"prune", "profiles", "export"},
    "reference": {"reference"},
}
# The sessions that run checkpoints load the model's code, inside a function.
TORCH_SESSIONS = (ROOT / "benchmark/torch_session.py", ROOT / "benchmark/torch_cuda_session.py")
NEEDS_NO_TORCH = ("profiles", "benchmark")
HEAVY = {"torch", "transformers", "optimum", "nncf", "safetensors", "datasets", "matplotlib", "onnx"}


def imports(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def sources(folder: str) -> list[Path]:
    return sorted(ROOT.joinpath(folder).glob("*.py"))


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_what_the_table_allows(folder: str) -> None:
    assert sources(folder)
    for path in sources(folder):
        for name, line in imports(path):
            if name.startswith("prune_export."):
                part = name.split(".")[1]
                allowed = ALLOWED[folder] | ({"prune"} if path in TORCH_SESSIONS else set())
                assert part in allowed, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("folder", NEEDS_NO_TORCH)
def test_the_base_package_needs_no_torch(folder: str) -> None:
    for path in sources(folder):
        for name, line in imports(path) if path not in TORCH_SESSIONS else ():
            assert name.split(".")[0] not in HEAVY, f"{path}:{line} imports {name}"


def test_root_types_need_nothing_but_the_standard_library() -> None:
    import sys

    for module in ROOT_TYPES:
        for name, line in imports(ROOT / f"{module}.py"):
            top, _, rest = name.partition(".")
            if top == "prune_export":
                assert rest.split(".")[0] in ROOT_TYPES, f"{module}.py:{line} imports {name}"
            else:
                assert top in sys.stdlib_module_names, f"{module}.py:{line} imports {name}"


def exporter(module: str) -> str:
    """The format that a module of export/ is for, or nothing."""
    return next((name for name in ("onnx", "openvino") if module.startswith(f"{name}_")), "")


def test_exporters_do_not_import_each_other() -> None:
    ours = {path: exporter(path.stem) for path in sources("export") if exporter(path.stem)}
    assert set(ours.values()) == {"onnx", "openvino"}
    for path, format_name in ours.items():
        for name, line in imports(path):
            other = exporter(name.split(".")[2]) if name.startswith("prune_export.export.") else ""
            assert other in ("", format_name), f"{path}:{line} imports {name}"
