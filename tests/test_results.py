"""The runs in `docs/results/` are of the experiments as they are now; README, RESULTS.md and records agree."""

import json
import re
import shlex
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PROJECT
from omegaconf import DictConfig, OmegaConf

from bantam.report import folders, groups
from bantam.training import folder, saved

RESULTS = PROJECT / "docs" / "results"
RECORDS = PROJECT / "docs" / "records"
PUBLISHED = ("skeleton", "v1", "v2", "sprint", "flyweight", "champion")
"""Experiments in the README's table."""
CLAIMED = {"champion": (10, 10), "flyweight": (8, 10), "sprint": (8, 10)}
"""Experiments that claim to hold the target, on how many seeds of how many."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_are_of_the_experiment_as_it_is_now(name: str, composed: Callable[..., DictConfig]) -> None:
    runs = [path.parent for path in sorted((RESULTS / name).glob("*/result.json"))]
    assert len(runs) >= 3
    for run in runs:
        own = saved.load(run)
        cfg, overrides, choices = own.config, own.overrides, own.choices
        assert choices["experiment"] == name
        now = composed(*overrides)
        # Keys that the run's version of Bantam did not have are null, as they are by default.
        assert OmegaConf.to_container(saved.typed(cfg)) == OmegaConf.to_container(now)
        assert all(value is None for key, value in now.budget.items() if key not in cfg.budget)
        result = folder.read_result(run)
        assert (result["split"], result["scored_images"], result["train_images"]) == ("test", 10_000, 60_000)
        assert result["seed"] == cfg.seed


@pytest.mark.parametrize("name", CLAIMED)
def test_what_holds_the_target_does_so_on_the_seeds_that_it_claims(name: str) -> None:
    least, seeds = CLAIMED[name]
    (group,) = groups.group(folders.gather([RESULTS / name]).runs)
    assert sorted(run.seed or 0 for run in group.runs) == list(range(seeds))
    held = [run for run in group.runs if min(run.last) >= run.target]
    assert len(held) == group.met >= least


@pytest.mark.whole
def test_the_table_of_the_readme_is_of_the_published_runs(
    bantam: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    (found,) = re.findall(
        r"(?s)<!-- table: (.*?) -->\n(.*?)\n<!-- /table -->", (PROJECT / "README.md").read_text()
    )
    command, rows = found
    words = shlex.split(command)
    assert words[-2:] == ["--into", "README.md"]
    paths = [word if word.startswith("-") else str(PROJECT / word) for word in words[2:-2]]
    done = bantam("table.py", *paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == rows


def test_a_published_network_has_the_accuracy_that_it_claims(
    bantam: Callable[..., subprocess.CompletedProcess[str]], mnist_root: str
) -> None:
    run = RESULTS / "champion" / "0"
    done = bantam("evaluate.py", str(run), "threads=1", BANTAM_DATA=mnist_root)
    assert done.stdout, done.stderr
    shown = float(done.stdout.split()[0])
    # On another processor sums round otherwise, and an image between two digits may fall to either side.
    assert shown == pytest.approx(folder.read_history(run)[-1].accuracy, abs=0.02), done.stdout + done.stderr


@pytest.mark.parametrize("name", PUBLISHED)
def test_results_md_says_what_the_published_runs_reached(name: str) -> None:
    runs = [path.parent for path in (RESULTS / name).glob("*/result.json")]
    results = [folder.read_result(run) for run in runs]
    first = results[0]
    last = [result["last_accuracies"] for result in results]
    objectives = [result["objective"] for result in results]
    seconds = [sum(epoch.seconds for epoch in folder.read_history(run)) * first["threads"] for run in runs]
    in_int8 = [json.loads((run / "export.json").read_text())["int8"] for run in runs]
    row = (
        f"`{name}`",
        f"{first['parameters']:,}",
        f"{first['multiply_adds']:,}",
        str(first["epochs"]),
        str(first["target"]["last_epochs"]),
        f"{statistics.fmean(objectives):.3f} ± {statistics.stdev(objectives):.3f}",
        f"{min(map(min, last)):.2f}",
        f"{sum(result['verdict'] == 'met' for result in results)} of {len(results)} seeds",
        f"{statistics.fmean(seconds):.0f}",
        f"{max(part['weight_bytes'] for part in in_int8):,}",
        f"{statistics.fmean(part['accuracy'] for part in in_int8):.3f}",
    )
    assert f"| {' | '.join(row)} |" in (PROJECT / "RESULTS.md").read_text().splitlines()
    records = "".join(path.read_text() for path in RECORDS.glob("*.md"))
    for accuracies in last:
        assert f"| {' '.join(f'{accuracy:.2f}' for accuracy in accuracies)} |" in records


def test_results_md_is_short_and_every_record_is_listed_once() -> None:
    assert len((PROJECT / "RESULTS.md").read_text().splitlines()) <= 200
    records = sorted(path.name for path in RECORDS.glob("*.md") if path.name != "README.md")
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}-[a-z0-9-]+\.md", name) for name in records)
    rows = re.findall(r"(?m)^\| (\S+) \| \[[^]]+\]\(([^)]+)\) \| \S.* \|$", (RECORDS / "README.md").read_text())
    assert sorted(name for _, name in rows) == records
    assert all(name.startswith(date) for date, name in rows)


@pytest.mark.parametrize(
    "page", [PROJECT / "RESULTS.md", *sorted(RECORDS.glob("*.md"))], ids=lambda page: page.name
)
def test_links_of_results_and_records_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).is_file(), target
