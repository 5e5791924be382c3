"""Who may import whom, what may name a GPU, and what must not load torch (DESIGN §2, §3)."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.files import ROOT

ORDER = ("zoo", "engines", "converters", "evaluate", "pretrain")  # each may import itself and what stands before it
LEAVES = ("report", "mini")  # zoo only
PACKAGES = (*ORDER, *LEAVES, "perf")  # perf measures them all and nobody imports it
NAMES_GPUS = ROOT / "zoo" / "device.py"
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import anywhere in a file, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def allowed(package: str) -> tuple[str, ...]:
    """The project's packages that a file of `package` may import."""
    if package == "perf":
        return PACKAGES
    return ORDER[: ORDER.index(package) + 1] if package in ORDER else ("zoo", package)


def wrong_imports(source: str, package: str) -> list[str]:
    """'line: module' of every import that the order forbids. Relative ones too: they hide the package."""
    others = {*PACKAGES, "tests", "scripts"} - set(allowed(package))
    return [
        f"{line}: {module}"
        for line, module in imported(ast.parse(source))
        if module.split(".")[0] in others or module.startswith(".")
    ]


def gpu_words(source: str) -> list[int]:
    """The lines of code that say "cuda" in a string, name, attribute or import; docstrings and comments may."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.value)
    found = set()
    for node in ast.walk(tree):
        if node not in docstrings and any("cuda" in word.lower() for word in _words(node)):
            found.add(getattr(node, "lineno", 0))
    return sorted(found)


def _words(node: ast.AST) -> Iterator[str]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, str):
            yield value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert wrong_imports(path.read_text(), package) == []


@pytest.mark.parametrize("path", [p for p in FILES if p != NAMES_GPUS], ids=lambda path: str(path.relative_to(ROOT)))
def test_gpus_are_named_in_one_file_only(path: Path) -> None:
    assert gpu_words(path.read_text()) == [], "ask zoo/device.py instead"


def test_the_checks_above_see_what_they_are_for() -> None:
    assert wrong_imports("def f():\n    from pretrain.train import x\nimport evaluate.knn as e", "converters") == [
        "3: evaluate.knn",
        "2: pretrain.train",
    ]
    assert wrong_imports("from evaluate import knn", "report") == wrong_imports("from evaluate import knn", "zoo")
    assert wrong_imports("from . import x", "zoo") == ["1: ."]
    assert wrong_imports("import zoo.files, mini.scene, torch", "mini") == []
    code = '"""cuda"""\nx = "cuda:0"  # cuda\ny.cuda()\nimport torch.cuda\nf(use_cuda=1)\nf"a {b} CUDA"\n'
    assert gpu_words(code) == [2, 3, 4, 5, 6]
    assert len(FILES) > 40 and NAMES_GPUS in FILES


def test_every_python_folder_has_its_place_in_the_order() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found <= set(PACKAGES), "a new package: put it into DESIGN §2's order, and here"


@pytest.mark.parametrize("package", [package for package in PACKAGES if (ROOT / package).is_dir()])
def test_a_package_says_what_it_is(package: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))


TORCHLESS = [
    "import zoo.config, zoo.checkpoint, zoo.record, zoo.files, zoo.page, zoo.recipe, zoo.datasets, zoo.transforms",
    "import report, report.table, report.__main__",
    "import evaluate.suite, evaluate.__main__",
    "import converters.__main__",
    "import pretrain.__main__",
    "import mini.__main__",
]


@pytest.mark.parametrize("statement", TORCHLESS)
def test_planning_and_reporting_load_no_torch(statement: str) -> None:
    program = f"{statement}\nimport sys\nassert not {{'torch', 'torchvision'}} & set(sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", ["plan", "status"])
def test_plan_and_status_load_no_torch(command: str, tmp_path: Path) -> None:
    env = {**os.environ, "ZOO_RUNS": str(tmp_path / "runs"), "ZOO_CACHE": str(tmp_path / "cache")}
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: a\ncheckpoints: [{random: resnet18}]\nbenchmarks: [pets_knn]\nseeds: [0]\n")
    program = "import sys, runpy\nsys.argv = ['evaluate', *sys.argv[1:]]\n"
    program += "try:\n    runpy.run_module('evaluate', run_name='__main__')\n"
    program += "finally:\n    assert 'evaluate.suite' in sys.modules and 'torch' not in sys.modules\n"
    tree = _small_world(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", tree + program, command, str(suite)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "resnet18, random weights" in ended.stdout


def _small_world(folder: Path) -> str:
    """A dataset of four images and a benchmark on it, and the code that shows them to a process."""
    (folder / "data.yaml").write_text(f"pets: {folder}\n")
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    splits = "".join(f"  {s}: {{num_images: 2, layouts: [{{class_folders: {s}}}]}}\n" for s in ("train", "val"))
    for kind in ("datasets", "benchmarks"):
        (folder / "configs" / kind).mkdir(parents=True)
    (folder / "configs" / "datasets" / "pets.yaml").write_text(
        f"name: pets\ntitle: Pets\nroot: null\nnum_classes: 2\nsubstitute_for: null\nsplits:\n{splits}"
    )
    knn = (ROOT / "configs" / "benchmarks" / "mini_knn.yaml").read_text().replace("mini_imagenet", "pets")
    (folder / "configs" / "benchmarks" / "pets_knn.yaml").write_text(knn)
    return (
        "import os, pathlib, zoo.files\n"
        f"zoo.files.CONFIGS = pathlib.Path({str(folder / 'configs')!r})\n"
        f"os.environ['ZOO_DATA'] = {str(folder / 'data.yaml')!r}\n"
    )
