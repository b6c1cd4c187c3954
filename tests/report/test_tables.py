from pathlib import Path

from made_folders import LAYERS, of_seeds, one, story, write_run, write_study

from bantam import budget
from bantam.report import folders, groups, runs, tables
from bantam.report.folders import Study, Trial
from bantam.report.tables import Table


def test_runs_have_a_row_each_with_the_way_to_their_step(tmp_path: Path) -> None:
    found = folders.gather([story(tmp_path / "runs")]).runs
    table = tables.runs(found, {found[0].folder: "step-1"})
    assert table is not None
    assert len(table.rows) == 8
    assert table.titles[5:7] == ["in epoch", "mean of last"]
    assert (table.rows[0][0].link, table.rows[1][0].link) == ("step-1", "")
    assert [row[7].mark for row in table.rows] == ["bad", "good", "good", "good", "good", "good", "", ""]
    assert [row[9].text for row in table.rows[-2:]] == ["refused", "unfinished"]


def test_what_has_no_result_stands_in_a_table_of_its_own(tmp_path: Path) -> None:
    table = tables.broken(folders.gather([story(tmp_path / "runs")]))
    assert table is not None
    assert [row[1].text for row in table.rows] == ["refused", "unfinished"]


def test_trials_are_ordered_by_accuracy_and_have_their_settings(tmp_path: Path) -> None:
    study = folders.read_study(write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 98.7)))
    table = tables.trials(study)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["1", "4", "3", "2", "0", "5", "6"]
    assert table.titles[4:6] == ["optimizer.lr", "model"]
    assert [cell.text for cell in table.rows[0]] == ["1", "complete", "99.000", "3,000", "0.02", "v2", "9.5", ""]
    assert dict(tables.study(study))["trials"] == "5 complete, 1 pruned, 1 over budget"


def test_a_mean_over_seeds_that_is_the_accuracy_stands_there_once(tmp_path: Path) -> None:
    def with_seeds(accuracy: float | None, *seeds: float) -> Trial:
        state = "pruned" if accuracy is None else "complete"
        return Trial(0, state, "", {}, {"parameters": 5000}, accuracy, 1.0, [], list(seeds))

    for trials, titles in (
        ([with_seeds(98.0, 97.0, 99.0)], ["seeds", "±", "each seed"]),
        ([with_seeds(97.0, 97.0, 99.0)], ["seeds", "mean", "±", "each seed"]),  # one standard error lower
        ([with_seeds(None, 97.0, 99.0)], ["seeds", "mean", "±", "each seed"]),
    ):
        table = tables.trials(Study(tmp_path, trials))
        assert table is not None
        assert table.titles[3 : 3 + len(titles)] == titles


def test_the_front_is_a_table(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0, 98.0, 98.5, 99.2), multi_objective=True)
    table = tables.trials(folders.read_study(folder), front=True)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["0", "1", "4"]


def test_the_cost_of_a_front_has_a_column_and_others_that_are_known(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", (97.0, 99.0), multi_objective=True, cost="bytes")
    table = tables.trials(folders.read_study(folder), front=True)
    assert table is not None
    assert table.titles == ["trial", "accuracy", "parameters", "bytes of weights", "optimizer.lr", "model"]
    assert [cell.text for cell in table.rows[0]][2:4] == ["5,000", "2,000"]
    assert "bytes of weights" not in table.spare
    best = dict(tables.study(folders.read_study(folder)))["most accurate"]
    assert best == "trial 1, 99.000 % of the validation images with 5,000 parameters and 3,000 bytes of weights"


def test_all_costs_and_limits_of_a_run_are_told(tmp_path: Path) -> None:
    limits = {"budget": {"bytes": 2000, "activations": None}}
    run = one(tmp_path / "0", 97.0, 98.9, settings=limits, multiply_adds=97_584, bytes=1576, activations=9000)
    assert tables.network(run) == (
        "2 layers, 394 parameters and 97,584 multiply-adds and 1,576 bytes of weights and 9,000 bytes of "
        "activations, receptive field 28"
    )
    assert tables.target(run.first).endswith(
        "fewer than 10,000 parameters, fewer than 2,000 bytes of weights, at most 15 epochs"
    )


def test_the_last_epochs_are_good_or_bad_by_the_target(tmp_path: Path) -> None:
    ((what, cells),) = tables.last(one(tmp_path / "0", 97.0, 98.9, 99.2, 99.0))
    assert what == "last epochs"
    assert [(cell.text, cell.value, cell.mark) for cell in cells] == [
        ("98.90", "epoch 2", "bad"),
        ("99.20", "epoch 3", "good"),
        ("99.00", "epoch 4", "good"),
    ]
    ((what, cells),) = tables.last(of_seeds(tmp_path, (98.9, 99.1), "v1"))
    assert what == "lowest of the last epochs, by seed"
    assert [(cell.text, cell.value, cell.mark) for cell in cells] == [
        ("98.90", "seed 0", "bad"),
        ("99.10", "seed 1", "good"),
    ]


def test_changes_and_layers_are_tables(tmp_path: Path) -> None:
    before = one(tmp_path / "0", 97.0, 98.9)
    after = one(tmp_path / "1", 97.0, 98.9, settings={"batch_size": 64})
    table = tables.changes(before, after)
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [["batch_size", "128", "64"]]
    assert tables.changes(before, before) is None
    layers = tables.layers(before.first)
    assert layers is not None
    assert [cell.text for cell in layers.rows[0]] == ["conv 3×3 → ReLU", "16×26×26", "3", "144", "97 k"]
    assert tables.network(before) == "2 layers, 394 parameters, receptive field 28"


def test_a_comparison_marks_what_is_distinguishable(tmp_path: Path) -> None:
    compared = [
        of_seeds(tmp_path, ends, name) for name, ends in (("a", (98.0, 98.1, 98.2)), ("b", (99.0, 99.1, 99.2)))
    ]
    table = tables.comparison(groups.compare(compared))
    assert table is not None
    (row,) = table.rows
    assert (row[0].text, row[1].text, row[1].mark) == ("a against b", "−1.00", "warn")


def test_a_run_without_a_configuration_has_no_target(tmp_path: Path) -> None:
    folder = story(tmp_path / "runs") / "0"
    assert tables.target(runs.read_run(folder)) == (
        "99 % in every one of the last 3 epochs, fewer than 10,000 parameters, at most 15 epochs"
    )
    (folder / ".hydra" / "config.yaml").unlink()
    assert tables.target(runs.read_run(folder)) == ""


def test_one_epoch_is_one_epoch(tmp_path: Path) -> None:
    settings = {"target": {"last_epochs": 1}, "budget": {"epochs": 1}}
    said = tables.target(runs.read_run(write_run(tmp_path / "0", settings=settings)))
    assert said == "99 % in the last epoch, fewer than 10,000 parameters, at most 1 epoch"


def test_repeats_of_a_seed_are_in_no_count(tmp_path: Path) -> None:
    for folder, seed in (("0", 1), ("1", 1), ("2", 2)):
        write_run(tmp_path / folder, seed=seed)
    found = folders.gather([tmp_path])
    numbers = {name: number for name, number, _ in tables.facts(found, groups.group(found.runs))}
    assert (numbers["runs"], numbers["repeats of a seed"], numbers["meet the target"]) == ("3", "1", "2 of 2")


def test_a_part_of_a_training_set_is_no_test_set(tmp_path: Path) -> None:
    found = one(tmp_path / "0", 97.0, 98.0, data="mnist5k", scored_images=1000)
    assert dict(tables.results(found))["scored on"] == "1,000 held-out images"
    best = one(tmp_path / "1", 97.0, 99.0)
    (fact,) = (each for each in tables.facts(folders.Contents(), [found, best]) if each[0].startswith("best mean"))
    assert fact[2] == "v2, 10,000 test images of MNIST"


def texts(table: Table | None) -> list[list[str]]:
    """What stands in the rows of a table."""
    return [[cell.text for cell in row] for row in table.rows] if table else []


def test_what_changed_is_a_row_a_group_without_seed_and_machine(tmp_path: Path) -> None:
    constant = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0}
    before = one(tmp_path / "0", 97.0)
    settings = {"scheduler": constant, "optimizer": {"lr": 0.1}, "batch_size": 64, "threads": 3}
    after = one(tmp_path / "1", 97.0, seed=2, settings=settings)
    found = {key: (old, new) for key, old, new in texts(tables.changes(before, after))}
    assert found["optimizer"] == ("lr 0.025", "lr 0.1")
    assert found["scheduler"][0] == "StepLR: step_size 2, gamma 0.1"
    assert found["scheduler"][1].startswith("ConstantLR: ")
    assert found["batch_size"] == ("128", "64")
    assert set(found) == {"optimizer", "scheduler", "batch_size"}
    assert tables.changes(before, before) is None


def test_layers_that_went_and_came(tmp_path: Path) -> None:
    def changed(old: list[budget.Layer], new: list[budget.Layer]) -> list[str]:
        for g, layers in ((before, old), (after, new)):
            g.first.layers = layers
        return [row[0] for row in texts(tables.layer_changes(before, after))]

    before, after = one(tmp_path / "0", 97.0), one(tmp_path / "1", 97.0)
    smaller = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 90, 80)]
    assert changed(LAYERS, smaller) == ["− linear, 10, 250 parameters", "+ linear, 10, 90 parameters"]
    other = [budget.Layer("conv 5×5", (10, 24, 24), 5, 250, 240)]
    assert changed(LAYERS, other) == ["Another network: none of its 1 layers is one of the other's."]
    assert changed([], other) == ["+ conv 5×5, 10×24×24, 250 parameters"]
    same = [LAYERS[0], budget.Layer("linear", (10, 1, 1), 28, 250, 240)]
    assert changed(LAYERS, same) == []
