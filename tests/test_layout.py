"""The shape of the library: who may import whom, and how much of it there may be."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from frcnn.schema import Config

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "frcnn").rglob("*.py"))
BACKENDS = {"tensorflow", "jax", "torch"}
# What each part may not name. A part that is not here may import everything but the backends.
RUNS = (
    "frcnn.training",
    "frcnn.run_folder",
    "frcnn.run_card",
    "frcnn.health",
    "frcnn.check",
    "frcnn.memory",
    "frcnn.optimizer",
    "frcnn.classification",
    "frcnn.inference",
)
KERAS_SIDE = ("keras", "frcnn.backend", "frcnn.ops", "frcnn.models", "frcnn.weights", "frcnn.weight_files", *RUNS)
FILES_SIDE = ("frcnn.data", "frcnn.evaluation", "frcnn.outputs", "frcnn.plots", "frcnn.visualize", "frcnn.html_page")
COMMANDS = ("frcnn.cli", "argparse")
FORBIDDEN = {
    "frcnn.data": (*KERAS_SIDE, *COMMANDS, "frcnn.evaluation", "frcnn.outputs", "frcnn.plots", "frcnn.visualize"),
    "frcnn.evaluation": (*KERAS_SIDE, *COMMANDS, "frcnn.data", "frcnn.outputs", "frcnn.plots", "frcnn.visualize"),
    "frcnn.records": (*KERAS_SIDE, *COMMANDS, "frcnn.config", "frcnn.evaluation", "frcnn.outputs"),  # it may draw
    "frcnn.files": ("keras", "frcnn", "argparse"),
    "frcnn.checkpoints": (*KERAS_SIDE, *FILES_SIDE, *COMMANDS),
    "frcnn.stopping": ("keras", "frcnn", "argparse"),
    "frcnn.schema": ("keras", "frcnn", "argparse"),
    "frcnn.config": (*KERAS_SIDE, *FILES_SIDE, *COMMANDS),
    "frcnn.legacy": (*KERAS_SIDE, *FILES_SIDE, *COMMANDS, "frcnn.config", "pickle", "importlib"),
    "frcnn.models": (*COMMANDS, *FILES_SIDE, *RUNS),
    "frcnn.arrays": (*KERAS_SIDE, *FILES_SIDE, *COMMANDS),
    "frcnn.cli": (),
    "frcnn.__main__": (),
    "frcnn": COMMANDS,
}
OPS_MAY_IMPORT = {"keras", "numpy", "frcnn.backend", "frcnn.ops"} | sys.stdlib_module_names - {"argparse"}
LIGHT = [
    path
    for path in FILES
    if re.match(
        r"(data|arrays|eval|cli|records|config|checkpoints|stopping|files|legacy|doctor|visual|__init__)", path.parts[1]
    )
]

every_file = pytest.mark.parametrize("path", FILES, ids=str)


def module_name(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def imports(path):
    """(line, dotted module) of every import, inside functions too; `from a import b` counts as a and as a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def parse(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def calls(tree, *names):
    """Lines of the calls of a bare or dotted name."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names]


@every_file
def test_only_backend_names_tensorflow_jax_and_torch(path):
    if path.is_relative_to("frcnn/backend"):
        return
    assert not [(line, name) for line, name in imports(path) if name.partition(".")[0] in BACKENDS]


@every_file
def test_imports_go_one_way(path):
    part = max((part for part in FORBIDDEN if within(module_name(path), part)), key=len)
    wrong = [
        f"{path}:{line} imports {name}"
        for line, name in imports(path)
        for forbidden in FORBIDDEN[part]
        if within(name, forbidden)
    ]
    assert not wrong


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to("frcnn/ops")], ids=str)
def test_ops_import_only_keras_numpy_and_each_other(path):
    wrong = [name for _, name in imports(path) if not any(within(name, allowed) for allowed in OPS_MAY_IMPORT)]
    assert not wrong


@every_file
def test_only_commands_print_and_exit(path):
    if within(module_name(path), "frcnn.cli"):
        return
    assert not calls(parse(path), "print", "exit", "quit", "sys.exit")


@every_file
def test_nothing_runs_what_a_file_says(path):
    tree = parse(path)
    assert not calls(tree, "pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "os.system")
    assert not [name for _, name in imports(path) if within(name, "pickle.load") or within(name, "pickle.loads")]


@every_file
def test_public_functions_and_classes_have_docstrings(path):
    tree = parse(path)
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(tree) or not tree.body, f"{path} needs a docstring"
    assert not [f"{path}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]


@every_file
def test_files_stay_short(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 400


def test_config_and_dependencies_stay_few():
    fields = sum(len(section.annotation.model_fields) for section in Config.model_fields.values())
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert fields <= 59
    assert len(dependencies) <= 11


@pytest.mark.parametrize(
    "names",
    [["frcnn"], ["frcnn", "frcnn.cli"], [module_name(path) for path in LIGHT]],
    ids=["frcnn", "frcnn.cli", "data, evaluation and commands"],
)
def test_what_needs_no_keras_does_not_import_it(names):
    program = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({BACKENDS | {'keras'}!r} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
