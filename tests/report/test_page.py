import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, NARROW, WIDE, Browser
from made_folders import EVIL, SETTINGS, story, thousand, write_run, write_study

from bantam.report import folders
from bantam.report import page as report
from bantam.training import folder as record

Bantam = Callable[..., subprocess.CompletedProcess[str]]


def html(*given: Path) -> str:
    return report.render(report.read(given))


def figure_titles(page: str) -> list[str]:
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    return [figure["title"] for figure in json.loads(data)]


def test_one_folder_gets_its_page_several_get_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert report.write([first]) == first / "report.html"
    assert report.write([first, second]) == Path("report.html")
    assert report.write([first], tmp_path / "x.html") == tmp_path / "x.html"
    assert report.write([first], second) == second / "report.html"
    assert (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"page.html cannot be written \(No such file or directory\)"):
        report.write([write_run(tmp_path / "a")], tmp_path / "nowhere" / "page.html")


def test_the_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    page = html(story(tmp_path / "runs"))
    outside = re.findall(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"(?!data:)([^\"]*)", page)
    assert outside == []
    assert len(page) < 4_000_000


def test_the_story_is_told(tmp_path: Path) -> None:
    page = report.build(folders.gather([story(tmp_path / "runs")]), "runs")
    assert page.runs is not None
    assert len(page.runs.rows) == 8
    first, second, refused, late = page.steps
    assert first.verdict == "met by 0 of 3 seeds"
    assert [cell.mark for cell in first.last] == ["bad", "good", "good"]
    assert second.before == "v1"
    assert second.changes is not None
    assert second.changes.rows[0][0].text == "model"
    assert "points above v1" in second.brought
    assert second.figure is not None
    assert second.errors is not None
    assert refused.verdict == "refused"
    assert late.brought == "No difference: one of the two has no result"
    assert [figure.title for figure in page.figures] == [
        "Learning curves",
        "Learning rate",
        "The last epochs",
        "Accuracy by class",
    ]
    assert page.comparison is not None
    assert page.comparison_figure is not None
    assert page.broken is not None
    assert [row[1].text for row in page.broken.rows] == ["refused", "unfinished"]


def test_what_folders_say_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = story(tmp_path / "<script>alert(1)" / "runs")
    write_run(folder / "8", name=EVIL, overrides=(EVIL,))
    page = html(folder)
    assert "<script>alert" not in page
    assert "<script>window" not in page
    assert "&lt;script&gt;window" in page


@pytest.mark.parametrize("value", [None, "x", [], {}, -1, [[1]], float("1e300")])
def test_no_value_in_a_result_stops_the_report(tmp_path: Path, value: Any) -> None:
    folder = write_run(tmp_path / "0", confusion=[[1]], classes=["a"])
    write_run(tmp_path / "1", seed=2)
    whole = record.read_result(folder)
    for key in (*whole, "classes", "confusion", "processor", "threads", "data"):
        record.write_result(folder, {**whole, key: value})
        report.build(folders.gather([tmp_path]), "title")


@pytest.mark.parametrize("part", list(SETTINGS))
def test_no_value_in_a_configuration_stops_the_report(tmp_path: Path, part: str) -> None:
    write_run(tmp_path / "0")
    config = tmp_path / "0" / ".hydra" / "config.yaml"
    for value in ("null", "x", "[1]", "{a: {b: c}}", "-1"):
        config.write_text(re.sub(rf"(?m)^{part}:.*(\n .*)*", f"{part}: {value}", config.read_text()))
        html(tmp_path)


def test_a_study_with_two_objectives_tells_its_front(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 99.2), two=True)
    (study,) = report.build(folders.gather([folder]), "study").studies
    assert study.front is not None
    assert [row[0].text for row in study.front.rows] == ["0", "1", "4"]
    said = {figure.title: figure.see for figure in study.figures}
    assert said["Accuracy and size"] == (
        "3 trials are on the front, from 2,000 parameters and 97.000 % to 6,000 and 99.200 %."
    )
    assert said["History"].startswith("Trial 4 is the most accurate")
    assert "The trials of the front have" in said["Settings side by side"]
    assert study.best is not None
    assert study.best.title == "Trial 4, the most accurate"
    assert "The front: no trial is as accurate with fewer parameters" in html(folder)


def test_a_study_is_shown_with_its_figures(tmp_path: Path) -> None:
    objectives = (97.0, 99.0, 98.0, 98.5, 98.7)
    folder = write_study(tmp_path / "study", objectives)
    page = report.build(folders.gather([folder]), "study")
    (study,) = page.studies
    assert [figure.title for figure in study.figures] == [
        "History",
        "Accuracy and size",
        "Epoch by epoch",
        "Importance",
        "Settings side by side",
    ]
    assert study.best is not None
    assert study.best.title == "Trial 1, the best"
    assert [row[0].text for row in study.trials.rows[:3]] == ["1", "4", "3"]
    assert dict(study.facts)["trials"] == "5 complete, 1 pruned, 1 over budget"
    assert page.runs is None


def test_a_figure_that_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 98.0))
    assert "No importances: 2 completed trials are too few." in html(folder)


def test_the_confirmation_is_shown(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    for seed in (2, 3):
        write_run(folder / "confirm" / f"trial_1-validation-{seed}", (90.0, 98.0, 98.5, 98 + seed / 10), seed)
    assert "The confirmation has not ended" in html(folder)
    test = {"verdict": "met", "met": 2, "mean": 99.25, "deviation": 0.1}
    confirmed = {"winner": 1, "seeds": [2, 3], "test": test}
    (folder / "confirm" / "confirm.json").write_text(json.dumps(confirmed))
    page = html(folder)
    assert "Trial 1 on the test images: met; 2 of 2 seeds hold the target" in page
    assert "Fresh seeds, validation images" in figure_titles(page)


def test_many_groups_are_shown_by_the_best(tmp_path: Path) -> None:
    for i in range(30):
        write_run(
            tmp_path / f"{i}", (90.0, 95.0, 96.0, 96 + i / 10), settings={"optimizer": {"lr": 0.01 * (i + 1)}}
        )
    page = report.build(folders.gather([tmp_path]), "many")
    assert len(page.steps) == report.STEPS
    assert "best 12 of 30" in page.steps_note
    assert page.comparison is not None
    assert len(page.comparison.rows) == report.COMPARED - 1
    assert page.runs is not None
    assert len(page.runs.rows) == 30


def test_a_thousand_trials_stay_small(tmp_path: Path) -> None:
    started = time.time()
    page = html(thousand(tmp_path / "study"))
    assert time.time() - started < 60
    assert len(page) < 5_000_000
    assert "Epoch by epoch" in figure_titles(page)


def test_whatever_goes_wrong_at_the_end_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(report, "build", broken)
    report.at_end(write_run(tmp_path / "0"))
    assert capsys.readouterr().out.strip() == "No report was written: KeyError: 'gone'"


def test_the_command(bantam: Bantam, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    result = bantam("report.py", "run")
    assert result.returncode == 0, result.stderr
    assert "Look at it: run/report.html" in result.stdout
    assert (tmp_path / "run" / "report.html").exists()
    result = bantam("report.py", "run", "nowhere")
    assert result.returncode == 1
    assert result.stderr == "Error: nowhere is no folder: give that of a run, a multirun or a study\n"


@pytest.mark.parametrize(("override", "written"), [("report=true", True), ("report=false", False)])
def test_a_multirun_ends_with_its_report(bantam: Bantam, tmp_path: Path, override: str, written: bool) -> None:
    small = ("data=mnist5k", "epochs=1", "pictures=false", "threads=1", "hydra.sweep.dir=runs", override)
    result = bantam("train.py", "-m", "model.width=4,17", *small)
    assert result.returncode == 1  # a width of 17 is over the budget: it is recorded, and shown
    assert ("Look at it: runs/report.html" in result.stdout) == written
    assert (tmp_path / "runs" / "report.html").exists() == written


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser() as page:
        yield page


def texts(browser: Browser, column: int) -> list[str]:
    """A column of the table of runs as it stands on the page."""
    cells = f"[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[{column}].textContent)"
    found: list[str] = browser.evaluate(cells)
    return found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_in_a_browser(browser: Browser, tmp_path: Path, size: tuple[int, int], dark: bool) -> None:
    folder = story(tmp_path / EVIL.replace("/", "∕") / "runs")
    study = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    page = report.write([folder, study], tmp_path / "page.html")
    browser.show(page, size, dark)
    browser.draw_all()
    assert browser.complaints == []
    assert browser.evaluate("window.evil") is None
    figures = browser.evaluate("document.querySelectorAll('.plot').length")
    assert figures > 12
    assert browser.evaluate("document.querySelectorAll('.plot .main-svg').length") >= figures
    empty = "[...document.querySelectorAll('.plot')].filter(place => !place.querySelector('.trace, .hm, .bars'))"
    assert browser.evaluate(f"{empty}.map(place => place.ariaLabel)") == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= size[0]
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark
    axis = browser.evaluate("getComputedStyle(document.querySelector('.plot .xtick text')).fill")
    assert (sum(map(int, re.findall(r"\d+", axis)[:3])) > 500) == dark


def test_sorting_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    browser.show(report.write([story(tmp_path / "runs")]))
    assert [Path(name).name for name in texts(browser, 0)] == list("01234567")
    last = "[...document.querySelectorAll('#runs th button')].find(b => b.textContent == 'last').click()"
    browser.evaluate(last)
    assert texts(browser, 6)[:3] == ["99.33", "99.30", "99.27"]
    assert texts(browser, 6)[-2:] == ["", ""]  # what has no number stays at the end
    browser.evaluate(last)
    assert texts(browser, 6)[0] == "99.00"
    assert texts(browser, 6)[-2:] == ["", ""]
    sort = "[...document.querySelectorAll('#runs th')].map(head => head.ariaSort).filter(s => s != 'none')"
    assert browser.evaluate(sort) == ["ascending"]
    assert browser.complaints == []


def test_a_figure_follows_the_colours_of_the_page(browser: Browser, tmp_path: Path) -> None:
    browser.show(report.write([story(tmp_path / "runs")]))
    browser.draw_all()
    line = "getComputedStyle(document.querySelector('#curves .xtick text')).fill"
    light = browser.evaluate(line)
    browser.colours(dark=True)
    browser.wait(f"{line} != '{light}'")
    assert browser.complaints == []


def test_a_thousand_trials_open_in_seconds(browser: Browser, tmp_path: Path) -> None:
    page = report.write([thousand(tmp_path / "study")])
    assert browser.show(page) < 20  # two seconds on an idle machine
    browser.draw_all()
    assert browser.complaints == []
