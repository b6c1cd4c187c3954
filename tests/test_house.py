"""The house: which module may import which, who may know which library, how long files and functions may be."""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from commands import PROJECT
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig

SOURCE = PROJECT / "src" / "bantam"
SCRIPTS = sorted(PROJECT.glob("*.py"))
FILES = [*sorted(SOURCE.rglob("*.py")), *SCRIPTS]
OPTIONS = sorted(path for path in (PROJECT / "conf").rglob("*.yaml") if path.parent != PROJECT / "conf")

LAYERS = (
    ("train", "evaluate", "predict", "confirm", "report", "table", "export", "track", "bantam"),  # entry points
    ("bantam.python",),  # the entry point for code
    ("bantam.search",),
    ("bantam.launch",),
    ("bantam.jobs",),
    ("bantam.errors", "bantam.resolve"),
    ("bantam.tracking", "bantam.markdown"),
    ("bantam.report", "bantam.export"),
    ("bantam.training",),
    ("bantam.kernels",),
    tuple(f"bantam.{name}" for name in ("models", "optimizers", "schedulers", "augmentation", "data", "trackers")),
    ("bantam.trials_csv",),
    ("bantam.images", "bantam.budget", "bantam.cluster", "bantam.config", "bantam.snapshot", "bantam.suggestions"),
    ("bantam.own", "bantam.options", "bantam.tracker_keys"),
    tuple(
        f"bantam.{name}" for name in ("ranges", "overrides", "activations", "receptive", "option_files", "nearest")
    ),
)
"""From the entry points down; a module imports only from below it, or from its own folder."""

MAY_KNOW = {
    "rich": lambda file: file.name == "terminal.py" or file == SOURCE / "search" / "watch.py",
    "hydra": lambda file: knows_configurations(file),
    "hydra_plugins": lambda file: knows_configurations(file),
    "omegaconf": lambda file: knows_configurations(file),
    "optuna": lambda file: file.parent == SOURCE / "search" or file == SOURCE / "report" / "study_figures.py",
}
"""Which files of the package may import a library."""

LINES, FUNCTION_LINES = 350, 50

EXCEPTIONS: dict[str, set[str]] = {}
"""What does not keep a rule yet, by rule: it must become empty, and whoever mends one takes its line out."""


TRAINING = (
    "training/finished.py",
    "training/build.py",
    "training/costs.py",
    "training/logits.py",
    "training/setup.py",
    "training/saved.py",
)
"""Files of the training that read configurations."""


def knows_configurations(file: Path) -> bool:
    allowed = (
        "ranges.py",
        "config.py",
        "options.py",
        "launch.py",
        "cluster.py",
        "jobs.py",
        "errors.py",
        "python.py",
        "overrides.py",
        "resolve.py",
        "snapshot.py",
        "option_files.py",
        "suggestions.py",
        "tracker_keys.py",
        "own/source.py",
        *TRAINING,
    )
    return file in [SOURCE / name for name in allowed] or file.parent == SOURCE / "search"


def short(file: Path) -> str:
    """A file's path as it stands in EXCEPTIONS."""
    return str(file.relative_to(SOURCE if SOURCE in file.parents else PROJECT))


def module_of(file: Path) -> str:
    """A file's name in an import."""
    if file in SCRIPTS:
        return file.stem
    parts = ["bantam", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@cache
def imports(file: Path) -> set[str]:
    """The modules that a file imports, inside its functions too; of a package of ours, its modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{short(file)} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
    return found


def layer(module: str) -> int:
    """How far down a module stands."""
    (depth,) = (
        depth
        for depth, names in enumerate(LAYERS)
        if module in names or any(module.startswith(f"{name}.") for name in names if name != "bantam")
    )
    return depth


def folder(module: str) -> str:
    return module.rpartition(".")[0] if module.count(".") > 1 else module


def imports_go_down() -> Iterator[str]:
    for module, file in MODULES.items():
        for other in imports(file) & set(MODULES):
            if layer(other) < layer(module) or (layer(other) == layer(module) and folder(other) != folder(module)):
                yield f"{short(file)} imports {other}"


def no_circles() -> Iterator[str]:
    graph = {module: imports(file) & set(MODULES) - {module} for module, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield " imports ".join(error.args[1])


def libraries_stay_where_they_belong() -> Iterator[str]:
    for file in set(FILES) - set(SCRIPTS):
        for library in {name.split(".")[0] for name in imports(file)} & set(MAY_KNOW):
            if not MAY_KNOW[library](file):
                yield f"{short(file)} knows {library}"


def scripts_leave_rich_alone() -> Iterator[str]:
    for file in SCRIPTS:
        if "rich" in {name.split(".")[0] for name in imports(file)}:
            yield f"{short(file)} knows rich"


def files_are_short() -> Iterator[str]:
    for file in (path for path in SOURCE.rglob("*.*") if path.suffix in (".py", ".c", ".h", ".html")):
        if len(file.read_text().splitlines()) > LINES:
            yield short(file)


def functions_are_short() -> Iterator[str]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                    yield f"{short(file)}: {node.name}"


def files_say_what_they_are() -> Iterator[str]:
    for file in FILES:
        if not ast.get_docstring(ast.parse(file.read_text())):
            yield short(file)


RULES = (
    imports_go_down,
    no_circles,
    libraries_stay_where_they_belong,
    scripts_leave_rich_alone,
    files_are_short,
    functions_are_short,
    files_say_what_they_are,
)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: Callable[[], Iterator[str]]) -> None:
    excepted, broken = EXCEPTIONS.get(rule.__name__, set()), set(rule())
    assert broken - excepted == set(), "does not keep the rule"
    assert excepted - broken == set(), "keeps the rule now: take the line out of EXCEPTIONS"


def test_every_exception_is_of_a_rule() -> None:
    assert set(EXCEPTIONS) <= {rule.__name__ for rule in RULES}
    assert all(EXCEPTIONS.values())


def test_every_module_has_its_place() -> None:
    for module in MODULES:
        assert 0 <= layer(module) < len(LAYERS)


def targets(node: object) -> Iterator[str]:
    """Everything that a configuration names to be built."""
    if isinstance(node, DictConfig):
        for key in node:
            value = node._get_node(key)
            if key == "_target_":
                yield str(node[key])
            yield from targets(value)
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from targets(node._get_node(index))


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_option_composes_and_names_what_exists(file: Path) -> None:
    group = file.parent.relative_to(PROJECT / "conf")
    with initialize_config_dir(str(PROJECT / "conf")):
        cfg = compose("config", [f"{group}={file.stem}"], return_hydra_config=True)
    named = set(targets(cfg))
    assert {"bantam.launch.Preflight"} < named
    for target in named:
        assert callable(get_object(target)), target
