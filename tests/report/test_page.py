import base64
import csv
import gzip
import json
import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, NARROW, WIDE, Browser
from made_folders import EVIL, SETTINGS, story, thousand, write_run, write_study

from bantam.report import folders, groups
from bantam.report import page as report
from bantam.report.figures import Figure
from bantam.report.page import Pairs, Report, Section
from bantam.report.tables import Table
from bantam.training import folder as record

Bantam = Callable[..., subprocess.CompletedProcess[str]]


def html(*given: Path) -> str:
    return report.render(report.read(given))


def section(found: Report, anchor: str) -> Section:
    """A section of a report, or a part of one."""
    every = [each for outer in found.sections for each in (outer, *outer.inner)]
    return next(each for each in every if each.anchor == anchor)


def figures(*of: Section) -> dict[str, str]:
    """Titles of the figures in sections, with what is found in them."""
    return {block.title: block.see for each in of for block in each.blocks if isinstance(block, Figure)}


def rows(found: Section) -> int:
    """Rows of the tables in a section."""
    return sum(len(block.rows) for block in found.blocks if isinstance(block, Table))


def figure_titles(page: str) -> list[str]:
    """Titles of the figures in their order, each with data of its own."""
    (packed,) = re.findall(r'<script type="application/gzip" id="figures">(.*?)</script>', page)
    data = gzip.decompress(base64.b64decode(packed))
    titles = re.findall(r'aria-label="([^":]*)(?:: [^"]*)?" data-figure="(\d+)"', page)
    assert [int(number) for _, number in titles] == list(range(len(json.loads(data))))
    return [title for title, _ in titles]


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
    found = report.read([story(tmp_path / "runs")])
    steps = section(found, "steps").inner
    assert [each.badge.text for each in steps if each.badge] == [
        "met by 0 of 3 seeds",
        "met by 3 of 3 seeds",
        "refused",
        "unfinished",
    ]
    against = [
        [name for block in each.blocks if isinstance(block, Pairs) for name, _ in block.items] for each in steps
    ]
    assert [[name for name in names if name.startswith("against")] for names in against] == [
        *([], ["against v1"], ["against flexible"], ["against big"]),
    ]
    assert list(figures(section(found, "curves"))) == [
        "Learning curves",
        "Learning rate",
        "The last epochs",
        "Accuracy by class",
    ]
    page = report.render(found)
    assert 'id="comparison"' in page
    assert 'id="broken"' in page
    parts = page.split('<article class="card step"')
    assert len(parts) == 5
    assert [re.findall(r'class="chip (\w*)"', part) for part in parts[1:3]] == [
        ["bad", "good", "good"],
        ["good"] * 3,
    ]
    assert "<td>model</td>" in parts[2].split("What changed against v1")[1]
    assert "points above v1" in parts[2]
    assert figure_titles(page) == [
        *("Training and test", "Confusion matrix") * 2,
        *("Training and test", "Learning curves", "Learning rate", "The last epochs", "Accuracy by class"),
    ]
    assert "Not compared: one of the two has no result" in parts[4]


def test_what_folders_say_is_text_and_nothing_else(tmp_path: Path) -> None:
    folder = story(tmp_path / "<script>alert(1)" / "runs")
    write_run(folder / "8", name=EVIL, overrides=(EVIL,))
    page = html(folder)
    assert "<script>alert" not in page
    assert "<script>window" not in page
    assert "&lt;script&gt;window" in page


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, "x", [], {}, -1, [[1]], float("1e300")])
def test_no_value_in_a_result_stops_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    whole = record.read_result(write_run(tmp_path / "0", confusion=[[1]], classes=["a"]))
    keys = (*whole, "classes", "confusion", "processor", "threads", "data")
    for i, key in enumerate(keys):  # beside each a seed that has nothing
        own = {"optimizer": {"lr": 0.01 * (i + 1)}}
        record.write_result(write_run(tmp_path / f"{i}1", settings=own), {**whole, key: value})
        write_run(tmp_path / f"{i}2", seed=2, settings=own)
    for name in ("STEPS", "COMPARED"):
        monkeypatch.setattr(report, name, 2 * len(keys))
    found = report.read([tmp_path])
    every = groups.group(folders.gather([tmp_path]).runs)
    assert len(section(found, "steps").inner) == len(every) > len(keys)
    report.render(found)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["null", "x", "[1]", "{a: {b: c}}", "-1"])
def test_no_value_in_a_configuration_stops_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for i, part in enumerate(SETTINGS):
        config = write_run(tmp_path / f"{i}") / ".hydra" / "config.yaml"
        config.write_text(re.sub(rf"(?m)^{part}:.*(\n .*)*", f"{part}: {value}", config.read_text()))
    monkeypatch.setattr(report, "STEPS", 2 * len(SETTINGS))
    found = report.read([tmp_path])
    every = groups.group(folders.gather([tmp_path]).runs)
    assert len(section(found, "steps").inner) == len(every) > 1
    report.render(found)


def test_a_study_with_two_objectives_tells_its_front(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 99.2), multi_objective=True)
    found = report.read([folder])
    sentences = figures(*section(found, "study-1").inner)
    assert "The front has mostly" in sentences["Settings side by side"]
    assert section(found, "study-1-best").title == "Trial 4, the most accurate"
    page = report.render(found)
    assert "The line is the front: where it bends, no trial with as few parameters is as accurate" in page
    assert contents(page)["study-1-front"] == "The front"
    part = page.split('id="study-1-front">')[1].split("</article>")[0]
    seen = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", part))
    assert seen.startswith(" The front No trial is as accurate with fewer parameters. trial accuracy parameters")


def contents(page: str) -> dict[str, str]:
    """The table of contents of a page: anchors and names. Every anchor is there, once."""
    found = dict(re.findall(r'<a href="#([\w-]+)" title="[^"]*">([^<]*)</a>', page.split("</nav>")[0]))
    for anchor in found:
        assert page.count(f'id="{anchor}"') == 1, anchor
    return found


@pytest.mark.whole
def test_every_study_and_its_parts_are_in_the_table_of_contents(tmp_path: Path) -> None:
    studies = [write_study(tmp_path / name, (97.0, 99.0, 98.0, 98.5, 98.7)) for name in ("first", "second")]
    write_run(studies[0] / "confirm" / "trial_1-validation-2", (90.0, 98.0, 98.5, 98.2), 2)
    found = contents(html(*studies, story(tmp_path / "runs")))
    parts = ("Trials", "History", "Accuracy and size", "Epoch by epoch", "Importance", "Settings side by side")
    assert list(found.values()) == [
        *("Runs", "Step by step", "v1", "flexible", "big", "late", "Side by side", "Comparison"),
        *("Study first", *parts, "Trial 1, the best", "Confirmed on fresh seeds"),
        *("Study second", *parts, "Trial 1, the best", "Without a result, or damaged"),
    ]


def test_the_trials_stand_before_the_figures_under_their_heading(tmp_path: Path) -> None:
    page = html(write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7)))
    section = page.split('<section id="study-1">')[1]
    heading, table, figure = (section.index(part) for part in (">Trials</h3>", "<table", "<figure"))
    assert heading < table < figure


def test_a_study_is_shown_with_its_figures(tmp_path: Path) -> None:
    found = report.read([write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))])
    parts = [part for part in section(found, "study-1").inner if not part.badge]
    assert list(figures(*parts)) == [
        "History",
        "Accuracy and size",
        "Epoch by epoch",
        "Importance",
        "Settings side by side",
    ]
    assert section(found, "study-1-best").title == "Trial 1, the best"
    assert [each.anchor for each in found.sections] == ["study-1"]
    assert 'id="runs"' not in report.render(found)


def test_a_figure_that_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 98.0))
    assert "No importances: they need four completed trials" in html(folder)


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


def test_a_confirmation_on_a_part_of_a_training_set_has_no_test_images(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    for seed in (2, 3):
        run = folder / "confirm" / f"trial_1-test-{seed}"
        write_run(run, (90.0, 98.0, 98.5, 98 + seed / 10), seed, data="mnist5k", scored_images=1000)
    confirmed = {"winner": 1, "seeds": [2, 3], "test": {"verdict": "not judged", "mean": 98.3}}
    (folder / "confirm" / "confirm.json").write_text(json.dumps(confirmed))
    page = html(folder)
    assert "Trial 1 on the held-out images: not judged" in page
    assert "The winner on the held-out images" in figure_titles(page)


@pytest.mark.whole
def test_many_groups_are_shown_by_the_best(tmp_path: Path) -> None:
    for i in range(30):
        write_run(
            tmp_path / f"{i}", (90.0, 95.0, 96.0, 96 + i / 10), settings={"optimizer": {"lr": 0.01 * (i + 1)}}
        )
    found = report.read([tmp_path])
    assert len(section(found, "steps").inner) == report.STEPS
    assert "The best 12 of 30" in report.render(found)
    assert rows(section(found, "comparison")) == report.COMPARED - 1
    assert rows(section(found, "runs")) == 30


@pytest.mark.whole
def test_a_thousand_trials_stay_small(tmp_path: Path) -> None:
    started = time.time()
    page = html(thousand(tmp_path / "study"))
    assert time.time() - started < 60
    (plotly,) = re.findall(r'(?s)<script type="application/gzip" id="plotly".*?</script>', page)
    assert len(page.encode()) - len(plotly) < 400_000  # of two keys; benchmarks/report.py has five, and every cost
    assert "Epoch by epoch" in figure_titles(page)


def test_whatever_goes_wrong_at_the_end_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(report, "render", broken)
    monkeypatch.chdir(tmp_path)
    assert not report.at_end(write_run(tmp_path / "0"))
    assert capsys.readouterr().err.strip() == (
        "No report was written (KeyError: 'gone'; the traceback is in 0/error.txt), but all results are there: "
        "python report.py 0 writes it"
    )
    assert 'raise KeyError("gone")' in (tmp_path / "0" / "error.txt").read_text()
    monkeypatch.undo()
    assert report.at_end(tmp_path / "0")


def test_a_page_of_a_running_search_loads_itself_again_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0))
    report.while_running(folder)
    assert capsys.readouterr().out == ""
    page = folder / "report.html"
    assert "data-running=" in page.read_text().split("<head>")[0]
    assert "while the search runs" in page.read_text()
    page.unlink()
    report.while_running(folder)
    assert not page.exists()  # it was written just now
    monkeypatch.setattr(report, "PAUSE", 0.0)
    monkeypatch.setattr(report, "SHARE", math.inf)
    report.while_running(folder)
    assert page.exists()
    report.at_end(folder)
    assert "data-running=" not in page.read_text().split("<head>")[0]
    assert "while the search runs" not in page.read_text()


def test_writing_the_page_takes_a_small_share_of_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    def slow(*arguments: Any, **more: Any) -> None:
        written.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(report, "write", slow)
    for _ in range(1000):
        report.while_running(tmp_path)
        now[0] += 1.0
    assert len(written) > 5
    assert 3.0 * len(written) / now[0] < 1.5 * report.SHARE


@pytest.mark.parametrize("error", [KeyError("gone"), MemoryError(), RecursionError()])
def test_a_page_that_cannot_be_written_does_not_touch_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def broken(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(report, "render", broken)
    report.while_running(write_study(tmp_path / "study", (97.0,)))
    report.while_running(tmp_path / "nowhere")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.whole
def test_the_command(bantam: Bantam, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    result = bantam("report.py", "run")
    assert result.returncode == 0, result.stderr
    assert "Look at it: run/report.html" in result.stdout
    assert (tmp_path / "run" / "report.html").exists()
    result = bantam("report.py", "run", "nowhere")
    assert result.returncode == 1
    assert result.stderr == "Error: nowhere is no folder: give that of a run, a multirun or a study\n"


@pytest.mark.whole
@pytest.mark.parametrize(("override", "written"), [("report=true", True), ("report=false", False)])
def test_a_multirun_ends_with_its_report(bantam: Bantam, tmp_path: Path, override: str, written: bool) -> None:
    small = ("data=mnist5k", "epochs=1", "pictures=false", "threads=1", "hydra.sweep.dir=runs", override)
    result = bantam("train.py", "-m", "model.width=4,17", *small)
    assert result.returncode == 1  # a width of 17 is over the budget: it is recorded, and shown
    assert ("Look at it: runs/report.html" in result.stdout) == written
    assert (tmp_path / "runs" / "report.html").exists() == written


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser() as page:
        yield page


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """The browser of this module, with nothing to complain about."""
    chromium.complaints.clear()
    return chromium


def texts(browser: Browser, column: int) -> list[str]:
    """A column of the table of runs as it is seen on the page."""
    rows = "[...document.querySelectorAll('#runs tbody tr')].filter(row => row.checkVisibility())"
    cells = f"{rows}.map(row => row.cells[{column}].textContent)"
    found: list[str] = browser.evaluate(cells)
    return found


@pytest.mark.whole
def test_in_a_browser_wide_and_narrow_light_and_dark(browser: Browser, tmp_path: Path) -> None:
    folder = story(tmp_path / EVIL.replace("/", "∕") / "runs")
    study = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    browser.show(report.write([folder, study], tmp_path / "page.html"))
    browser.draw_all()
    figures = browser.evaluate("document.querySelectorAll('.plot').length")
    assert figures > 12
    for size, dark in ((WIDE, False), (WIDE, True), (NARROW, True), (NARROW, False)):
        browser.resize(size)
        browser.colours(dark)
        brightness = "(colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"
        axis = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
        browser.wait(f"({brightness}({axis}) > 500) == {str(dark).lower()}")
        browser.wait(f"document.documentElement.scrollWidth <= {size[0]}")
        ground = f"{brightness}(getComputedStyle(document.body).backgroundColor)"
        assert (browser.evaluate(ground) < 200) == dark
        assert browser.evaluate("document.querySelectorAll('.plot .main-svg').length") >= figures
        empty = "[...document.querySelectorAll('.plot')].filter(box => !box.querySelector('.trace, .hm, .bars'))"
        assert browser.evaluate(f"{empty}.map(box => box.ariaLabel)") == []
        # What is wider than its place says so: on a phone the tables of runs and of trials are.
        wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)"
        browser.wait(f"{wide}.every(box => box.classList.contains('cut'))")
        said = "[box, box.previousElementSibling ?? box].map(each => getComputedStyle(each, '::after').content)"
        hints = browser.evaluate(f"{wide}.map(box => {said} + getComputedStyle(box).backgroundImage)")
        assert size != NARROW or len(hints) >= 2
        assert all("scroll sideways" in each and "gradient" in each for each in hints)
    assert browser.complaints == []
    assert browser.evaluate("window.evil") is None


@pytest.mark.whole
def test_tables_are_sorted_filtered_and_saved(browser: Browser, tmp_path: Path) -> None:
    browser.show(report.write([story(tmp_path / "runs")]))
    assert [Path(name).name for name in texts(browser, 0)] == list("01234567")
    last = "[...document.querySelectorAll('#runs th button')].find(b => b.textContent == 'mean of last').click()"
    browser.evaluate(last)
    assert texts(browser, 6)[:3] == ["99.33", "99.30", "99.27"]
    assert texts(browser, 6)[-2:] == ["", ""]  # what has no number stays at the end
    browser.evaluate(last)
    assert texts(browser, 6)[0] == "99.00"
    assert texts(browser, 6)[-2:] == ["", ""]
    sort = "[...document.querySelectorAll('#runs th')].map(head => head.ariaSort).filter(s => s != 'none')"
    assert browser.evaluate(sort) == ["ascending"]
    for words, networks in (
        ("flexible", ["flexible"] * 3),
        ("v1 last>99.05", ["v1"] * 2),
        ("seed=2 met", ["v1", "flexible"]),
    ):
        browser.evaluate(
            f"(box => {{ box.value = {words!r}; box.dispatchEvent(new Event('input')) }})"
            "(document.querySelector('#runs input'))"
        )
        assert texts(browser, 1) == networks
    assert browser.evaluate("document.querySelector('#runs output').textContent") == "2 of 8"
    saved = browser.evaluate(
        "new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return '#' };"
        "document.querySelector('#runs .tools button').click() })"
    )
    rows = list(csv.reader(saved.splitlines()))
    assert rows[0][:4] == ["folder", "network", "seed", "parameters"]
    assert [row[1] for row in rows[1:]] == ["v1", "flexible"]
    assert float(rows[1][6]) == pytest.approx((99.2 + 99.0 + 99.0) / 3)  # in full
    assert browser.complaints == []


@pytest.mark.whole
def test_a_figure_says_that_it_is_not_drawn_yet_and_follows_the_colours(browser: Browser, tmp_path: Path) -> None:
    browser.show(report.write([story(tmp_path / "runs")]))
    place = "[...document.querySelectorAll('.plot')].at(-1)"
    said = f"getComputedStyle({place}, '::before').content"
    assert "loading" in browser.evaluate(said)
    browser.draw_all()
    browser.wait(f"{said} == 'none'")
    line = "getComputedStyle(document.querySelector('#curves .xtick text')).fill"
    light = browser.evaluate(line)
    browser.colours(dark=True)
    browser.wait(f"{line} != '{light}'")
    assert browser.complaints == []


@pytest.mark.whole
def test_a_running_page_loads_itself_again_and_keeps_its_place_and_its_filter(
    browser: Browser, tmp_path: Path
) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    page = report.write([folder], running=True)

    def load_after(milliseconds: int) -> None:
        page.write_text(re.sub(r'data-running="\d+"', f'data-running="{milliseconds}"', page.read_text()))

    load_after(3_600_000)
    browser.show(page)
    browser.evaluate(
        "(box => { box.value = 'pruned'; box.dispatchEvent(new Event('input')) })"
        "(document.querySelector('#study-1 input')); scrollTo({top: 700, behavior: 'instant'})"
    )
    load_after(100)
    browser.evaluate("setTimeout(loadAgain)")
    report.write([folder])  # the search has ended
    browser.wait("(page => page?.dataset.ready && !page.dataset.running)(document.documentElement)")
    assert browser.evaluate("document.querySelector('#study-1 input').value") == "pruned"
    assert browser.evaluate("scrollY") == pytest.approx(700, abs=2)
    assert browser.complaints == []


@pytest.mark.whole
def test_a_wide_table_of_trials_fits_a_screen(browser: Browser, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    lines = (folder / "trials.csv").read_text().splitlines()
    keys = ("optimizer.momentum", "scheduler.step_size", "scheduler.gamma", "model.width", "model.early_separable")
    head, *rows = [line.split(",") for line in lines]
    wide = [[*head[:3], *keys, *head[3:]], *([*row[:3], *["0.1234"] * len(keys), *row[3:]] for row in rows)]
    (folder / "trials.csv").write_text("\n".join(",".join(row) for row in wide) + "\n")
    browser.show(report.write([folder]), (1400, 900))
    fits = "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('#study-1 .tall'))"
    assert browser.evaluate(fits)


@pytest.mark.whole
def test_a_table_of_trials_with_all_costs_fits_a_screen(browser: Browser, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))
    with (folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    keys = {"optimizer.momentum": "0.8765", "scheduler.step_size": "10", "scheduler.gamma": "0.1235"}
    costs = {"parameters": "9440", "multiply_adds": "1885408", "bytes": "39400", "activations": "80128"}
    with (folder / "trials.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], *keys])
        writer.writeheader()
        writer.writerows({**row, **keys, **costs, "seconds": "123.4"} for row in rows)
    browser.show(report.write([folder]), (1400, 900))
    titles = browser.evaluate("[...document.querySelectorAll('#study-1 .tall th')].map(head => head.textContent)")
    assert {"multiply-adds", "bytes of weights", "bytes of activations", *keys} <= set(titles)
    fits = "(box => box.scrollWidth <= box.clientWidth)(document.querySelector('#study-1 .tall'))"
    assert browser.evaluate(fits)


@pytest.mark.whole
def test_an_axis_of_few_trials_has_every_number_once(browser: Browser, tmp_path: Path) -> None:
    for count in (2, 4, 7):
        folder = write_study(tmp_path / f"{count}", tuple(97.0 + i / 10 for i in range(count)), pruned=0, over=0)
        browser.show(report.write([folder]))
        browser.draw_all()
        ticks = "[...document.querySelectorAll('[aria-label^=History] .xtick')].map(tick => tick.textContent)"
        labels = browser.evaluate(ticks)
        assert len(labels) == len(set(labels)) > 1
        assert browser.complaints == []


@pytest.mark.whole
def test_labels_that_stand_in_two_figures_are_in_both(browser: Browser, tmp_path: Path) -> None:
    page = report.write([write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7))])
    browser.show(page)
    browser.draw_all()
    labels = "title => document.querySelector(`[aria-label^='${title}']`).data.map(trace => trace.text)"
    history, sizes = (browser.evaluate(f"({labels})({title!r})") for title in ("History", "Accuracy and size"))
    assert history[1:] == sizes[1:]
    assert history[1][1] == "trial 1: 99.000 %<br>optimizer.lr 0.02<br>model v2"


@pytest.mark.slow
def test_a_thousand_trials_open_in_seconds(browser: Browser, tmp_path: Path) -> None:
    page = report.write([thousand(tmp_path / "study")])
    assert browser.show(page) < 60  # two seconds on an idle machine
    browser.draw_all()
    assert browser.complaints == []
