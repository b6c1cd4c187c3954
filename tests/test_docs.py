"""The pages in `docs/` are true: their commands, messages, tables and links, and what is made from the schema."""

import ast
import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from commands import Bantam
from conftest import PROJECT
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

DOCS = PROJECT / "docs"
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PROGRAMS = ("pytest", "ruff", "mypy", "mkdocs", "optuna-dashboard", "tensorboard", "mlflow")
"""What the extras install and the pages name beside `python` and `pip`."""
COMMANDS = list(dict.fromkeys(command for page in pages.ALL for command in pages.commands(page, "sh")))

Composed = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def options(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The help of a script, read once."""
    bantam = Bantam(tmp_path_factory.mktemp("help"), forks)
    known: dict[str, str] = {}

    def help_of(script: str) -> str:
        if script not in known:
            known[script] = bantam(script, "--help").stdout
        return known[script]

    yield help_of
    bantam.close()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str, composed: Composed, options: Callable[[str], str]) -> None:
    for part in re.sub(r"<[^>]*>", "0", command).split(" && "):
        program, *words = shlex.split(part)
        if program == "pip":
            for extra in re.findall(r"\[(.*)\]", part):
                assert set(extra.split(",")) <= set(EXTRAS)
        elif program == "python":
            script, *arguments = words
            assert (PROJECT / script).is_file()
            if script == "train.py":
                compose(arguments, composed)
            else:
                flags = [word for word in arguments if word.startswith("--")]
                assert all(flag in options(script) for flag in flags)
                composed(*(word for word in arguments if re.match(r"[\w.]+=", word)))
        else:
            assert program in PROGRAMS


def compose(arguments: list[str], composed: Composed) -> None:
    """Compose what a command of train.py trains: every option that it varies, and one value of a range."""
    for launcher in ("submitit", "ray"):
        if f"hydra/launcher={launcher}" in " ".join(arguments):
            pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    if "--config-dir" in arguments:  # of a study, which has an experiment of its own
        at = arguments.index("--config-dir")
        arguments = [word for word in arguments[:at] + arguments[at + 2 :] if not word.startswith("experiment=")]
    words = [word for word in arguments if word not in ("-m", "--help", "…")]
    parsed = OverridesParser.create().parse_overrides(words)
    assert "-m" in arguments or not any(override.is_sweep_override() for override in parsed)
    varied = [values(override) for override in parsed]
    for i in range(max(map(len, varied), default=1)):
        line = [several[i % len(several)] for several in varied]
        try:
            composed(*line)
        except ConfigCompositionException:  # a search varies a key of an option with this one alone
            assert any(word.startswith("hydra/sweeper=bantam") for word in words)
            assert i > 0


def values(override: Override) -> list[str]:
    """The overrides of single runs that an override stands for, of a range the first."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    value = override.value()
    if isinstance(value, RangeSweep | IntervalSweep):
        return [f"{override.get_key_element()}={value.start}"]
    return [f"{override.get_key_element()}={text}" for text in override.sweep_string_iterator()]


REFUSED = [
    (command.strip(), message.strip())
    for page in pages.ALL
    for command, message in re.findall(r"```\n(python [^`]*?)```\n\n```text\n(Error: [^`]*?)```", page.read_text())
]


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_a_command_that_is_refused_says_what_the_page_says(bantam: Bantam, command: str, message: str) -> None:
    python, script, *words = shlex.split(command)
    refused = bantam(script, *words)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[0] == message
    assert python == "python"


def templates() -> str:
    """All texts in the code, one a line, with … for what is filled in."""
    found = []
    for path in (PROJECT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


FOREIGN = {
    "… cannot be authorized by the Hydra execution whitelist …": "optimizer._target_=os.system",
}
"""Messages of Hydra's that the page about trouble quotes, and what brings them about."""


@pytest.mark.whole
def test_the_messages_in_troubleshooting_are_those_of_the_code(bantam: Bantam) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 15
    known = templates()
    for message in rows:
        if message in FOREIGN:
            refused = bantam("train.py", FOREIGN[message])
            assert refused.returncode == 1
            assert all(part in refused.stderr for part in message.split("…"))
        else:
            assert re.search(".*".join(map(re.escape, message.split("…"))), known), message


@pytest.mark.whole
def test_the_reference_is_of_the_schema_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.PAGE.read_text() == reference.page(), "run python docs/reference.py"


def added() -> list[tuple[str, str]]:
    """The classes that the page about networks adds, each with its YAML file."""
    found = pages.blocks(DOCS / "networks.md")
    return [
        (code, file) for (first, code), (second, file) in pairwise(found) if (first, second) == ("python", "yaml")
    ]


@pytest.mark.whole
@pytest.mark.parametrize(("code", "file"), added())
def test_what_the_page_about_networks_adds_works(bantam: Bantam, tmp_path: Path, code: str, file: str) -> None:
    _, module, name = yaml.safe_load(file)["_target_"].split(".")
    package = shutil.copytree(PROJECT / "src" / "bantam", tmp_path / "src" / "bantam")
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    shutil.copy(PROJECT / "train.py", tmp_path)
    with (package / f"{module}.py").open("a") as stream:
        stream.write("\n\n" + code)
    group = module.removesuffix("s")
    (tmp_path / "conf" / group / f"{name.lower()}.yaml").write_text(file)
    arguments = (f"{group}={name.lower()}", "dry_run=true", "data=mnist5k")
    result = bantam(str(tmp_path / "train.py"), *arguments, PYTHONPATH=str(tmp_path / "src"))
    assert result.returncode == 0, result.stderr
    assert f"{group:<12}  {name.lower()}: " in result.stdout


def test_the_network_of_ones_own_on_the_page_works(bantam: Bantam, tmp_path: Path) -> None:
    (text,) = (block for language, block in pages.blocks(DOCS / "networks.md") if language == "py")
    (tmp_path / "mine.py").write_text(text)
    result = bantam("train.py", "model=mine.py:Net", "model.width=9", "dry_run=true", "data=mnist5k")
    assert result.returncode == 0, result.stderr
    assert "mine.py:Net: width 9, dropout 0.1" in result.stdout


def test_the_dataset_that_the_page_about_data_adds_fits_the_schema(composed: Composed, tmp_path: Path) -> None:
    (file,) = (block for language, block in pages.blocks(DOCS / "data.md") if language == "yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets.yaml").write_text(file)
    assert composed(f"hydra.searchpath=[file://{tmp_path}]", "data=pets").data.root == "/home/me/pets"


@pytest.mark.slow
def test_the_images_that_the_page_about_data_makes_can_be_trained_on(
    bantam: Bantam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    for language, text in pages.blocks(DOCS / "data.md"):
        if language == "py":
            exec(text, made)
    commands = [line for line in pages.commands(DOCS / "data.md") if "data.root=" in line]
    assert len(commands) == 4
    for command in commands:
        done = bantam(*shlex.split(command)[1:], "dry_run=true")
        assert done.returncode == 0, done.stderr
        assert "1,500 images to train on, 297 test images" in " ".join(done.stdout.split())


def test_every_file_is_in_the_table_of_files() -> None:
    page = (DOCS / "how-it-works.md").read_text()
    for file in (PROJECT / "src" / "bantam").rglob("*.*"):
        if file.name != "__init__.py" and file.suffix in (".py", ".c", ".h", ".html"):
            assert f"`{file.relative_to(PROJECT / 'src' / 'bantam')}`" in page
    for file in PROJECT.glob("*.py"):
        assert f"| `{file.name}` |" in page


def test_the_functions_on_the_way_of_a_run_and_of_a_trial_exist() -> None:
    steps = re.findall(r"^\| \d+ \| `([^`]+)` \| ([^|]+) \|", (DOCS / "how-it-works.md").read_text(), re.MULTILINE)
    assert len(steps) > 12
    for file, functions in steps:
        path = PROJECT / file if (PROJECT / file).exists() else PROJECT / "src" / "bantam" / file
        defined = {
            n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.ClassDef)
        }
        for function in re.findall(r"`([^`]+)`", functions):
            assert set(function.split(".")) <= defined, (file, function)


def test_every_option_is_in_the_table_of_groups() -> None:
    guide = (DOCS / "guide.md").read_text()
    for group in sorted(path.name for path in (PROJECT / "conf").iterdir() if path.is_dir()):
        (row,) = (line for line in guide.splitlines() if line.startswith(f"| `{group}` |"))
        for file in (PROJECT / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in row


@pytest.mark.parametrize("page", pages.ALL, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_site() -> None:
    site = yaml.safe_load((PROJECT / "mkdocs.yml").read_text())
    listed = [next(iter(item.values())) if isinstance(item, dict) else item for item in site["nav"]]
    assert {page.name for page in pages.DOCS} <= set(listed)
