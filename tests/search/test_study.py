import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands import PROJECT
from searches import SPACE, TWO, rate, work

from bantam.search import storage, study, trials
from bantam.search.faults import MachineFault
from bantam.search.space import Search
from bantam.search.study import hopeless, open_study


@pytest.mark.whole
def test_a_space_without_a_network_in_the_budget_ends_with_one_error(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bantam.search.study.MAX_OVER_BUDGET", 10)
    wanted = searching(space=("model.width=range(17,21)", "optimizer.lr=interval(0.01,0.1)"))
    listed = work(wanted)
    assert len(listed) == 10
    assert wanted.launcher.launched == []
    assert "10 networks in a row were over the budget, the smallest with 10,897 parameters" in hopeless(
        wanted, listed
    )


@pytest.mark.whole
def test_n_trials_counts_every_finished_training_over_all_continuations(
    searching: Callable[..., Search],
) -> None:
    first = work(searching("hydra.sweeper.n_trials=3"))
    again = work(searching("hydra.sweeper.n_trials=3"))
    more = work(searching("hydra.sweeper.n_trials=7"))
    assert len(first) == len(again)
    assert trials.count(first)["complete"] == 3
    assert trials.count(more)["complete"] == 7
    settings = [tuple(trial.params.values()) for trial in more]
    assert len(set(settings)) == len(settings)  # the seed is fixed, and no trial is repeated


@pytest.mark.whole
def test_a_search_in_which_everything_fails_stops_with_the_first_error(
    searching: Callable[..., Search],
) -> None:
    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        return {"verdict": "diverged", "reason": f"nan in trial {number}", "objective": None}

    wanted = searching("hydra.sweeper.n_trials=20", "hydra.sweeper.max_failure_rate=0.2", result=result)
    listed = work(wanted)
    assert trials.count(listed)["failed"] == 5
    reason = hopeless(wanted, listed)
    assert reason.startswith(
        "5 trials failed, more than hydra.sweeper.max_failure_rate=0.2 of 20 allows; the first"
    )
    assert "nan in trial" in reason


@pytest.mark.whole
def test_a_study_of_one_objective_is_not_continued_with_two(searching: Callable[..., Search]) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    with pytest.raises(ValueError, match=r"^hydra.sweeper.objectives is \[accuracy,parameters\] here, but \[acc"):
        open_study(searching(*TWO, "hydra.sweeper.n_trials=1"))


@pytest.mark.whole
def test_known_settings_are_tried_first_and_once(searching: Callable[..., Search]) -> None:
    enqueue = "hydra.sweeper.enqueue=[{optimizer.lr:0.025,model.width:16},{model.dropout:0}]"
    work(searching(enqueue, "hydra.sweeper.n_trials=2"))
    listed = work(searching(enqueue, "hydra.sweeper.n_trials=3"))
    assert listed[0].params == {"optimizer.lr": 0.025, "model.width": 16}
    assert sum(trial.params == listed[0].params for trial in listed) == 1
    assert all(trial.params["optimizer.lr"] <= 0.1 for trial in listed)


@pytest.mark.whole
def test_a_grid_is_searched_once_without_its_networks_over_the_budget(
    searching: Callable[..., Search],
) -> None:
    listed = work(
        searching(
            "hydra/sweeper/sampler=grid", space=("model.width=choice(8,12,40)", "optimizer.lr=choice(0.01,0.1)")
        )
    )
    assert trials.count(listed) == {"complete": 4, "over budget": 2}
    assert len({tuple(trial.params.values()) for trial in listed}) == 6


@pytest.mark.whole
@pytest.mark.parametrize(
    "known",
    [
        "[{model.width:12,optimizer.lr:0.1}]",
        "[{model.width:12}]",
        "[{model.width:8,optimizer.lr:0.1},{model.width:8,optimizer.lr:0.01},{model.width:12,optimizer.lr:0.1}]",
    ],
)
def test_a_grid_and_known_settings_try_every_point_once(searching: Callable[..., Search], known: str) -> None:
    wanted = searching(
        f"hydra.sweeper.enqueue={known}",
        "hydra/sweeper/sampler=grid",
        space=("model.width=choice(8,12,14)", "optimizer.lr=choice(0.01,0.1)"),
    )
    listed = work(wanted)
    points = [(trial.params["model.width"], trial.params["optimizer.lr"]) for trial in listed]
    assert sorted(points) == [(width, lr) for width in (8, 12, 14) for lr in (0.01, 0.1)]
    assert points[0][0] == (8 if "8" in known else 12)
    assert trials.count(listed) == {"complete": 6}
    assert len(wanted.launcher.launched) == 6


@pytest.mark.whole
def test_failures_of_before_do_not_refuse_a_line_that_is_typed_again(searching: Callable[..., Search]) -> None:
    broken = True

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if broken:
            return {"verdict": "diverged", "reason": "nan", "objective": None}
        return rate(number, settings)

    settings = ("hydra.sweeper.n_trials=8", "hydra.sweeper.max_failure_rate=0.2")
    stopped = work(searching(*settings, result=result, space=SPACE[:1]))
    assert trials.count(stopped) == {"failed": 2}
    broken = False
    assert trials.count(work(searching(*settings, result=result, space=SPACE[:1]))) == {"failed": 2, "complete": 6}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("optimizer.lr=interval(0.01,0.2)",), "optimizer.lr is 0.01 to 0.2 here, but 0.01 to 0.1 in the study"),
        (("optimizer.lr=0.1",), "optimizer.lr is 0.1 here, but 0.01 to 0.1"),
        (("seed=2",), "seed is 2 here, but 1 in the study"),
        (("target.last_epochs=3",), "target.last_epochs is 3 here, but 5"),
        (("model=v1",), "model is v1 here, but v2 in the study"),
        (("model.dropout=interval(0.0,0.1)",), "model.dropout is 0 to 0.1 here, but 0.05 in the study"),
    ],
)
def test_a_study_is_continued_only_as_it_was_begun(
    searching: Callable[..., Search], change: tuple[str, ...], sentence: str
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    with pytest.raises(ValueError, match="begin another one with hydra.sweep.dir=…") as error:
        open_study(searching("hydra.sweeper.n_trials=1", *change))
    assert str(error.value).startswith(sentence)


@pytest.mark.whole
def test_workers_trials_and_the_address_of_the_storage_may_change(
    searching: Callable[..., Search], tmp_path: Path
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    (tmp_path / "study" / "study.db").rename(tmp_path / "elsewhere.db")
    listed = work(
        searching(
            "hydra.sweeper.n_trials=2",
            "hydra.sweeper.n_jobs=7",
            f"hydra.sweeper.storage=sqlite:///{tmp_path}/elsewhere.db",
            "pictures=true",
        )
    )
    assert trials.count(listed)["complete"] == 2


@pytest.mark.whole
def test_a_folder_with_trials_that_the_storage_does_not_know_is_refused(
    searching: Callable[..., Search], tmp_path: Path
) -> None:
    work(searching("hydra.sweeper.n_trials=1"))
    (tmp_path / "study" / "study.db").unlink()
    with pytest.raises(ValueError, match="holds trials of a study that sqlite:.* does not know"):
        work(searching("hydra.sweeper.n_trials=1"))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (study.IMAGES, "MNIST with the checksum 0", "what data became is mnist5k with the checksum .* but MNIST"),
        (study.HELD_OUT, "5000", "the number of validation images held out is 1000 here, but 5000 in the study"),
        ("device" + study.RESOLVED, "tpu", r"device \(what it became\) is cpu here, but tpu.* use device=tpu"),
        ("precision" + study.RESOLVED, "float16", r"precision \(what it became\) is .* use precision=float16"),
        ("kernels" + study.RESOLVED, "other", r"kernels \(what it became\) is .* here, but other"),
    ],
)
def test_a_machine_on_which_auto_stands_for_something_else_is_refused(
    searching: Callable[..., Search], key: str, value: str, sentence: str
) -> None:
    begun = open_study(searching())
    begun.set_user_attr("definition", {**begun.user_attrs["definition"], key: value})
    with pytest.raises(ValueError, match=sentence):
        open_study(searching())


@pytest.mark.whole
def test_a_study_goes_on_with_what_auto_became_there(searching: Callable[..., Search]) -> None:
    open_study(searching())
    open_study(searching("device=cpu"))


@pytest.mark.whole
def test_a_study_goes_on_where_a_reference_is_typed_as_its_value(searching: Callable[..., Search]) -> None:
    open_study(searching("seed=3"))
    open_study(searching("seed=3", "data.split_seed=3"))
    with pytest.raises(ValueError, match="data.split_seed is 4 here"):
        open_study(searching("seed=3", "data.split_seed=4"))


@pytest.mark.whole
def test_fixed_keys_of_a_searched_group_belong_to_the_study(searching: Callable[..., Search]) -> None:
    space = ("optimizer=choice(sgd,adamw)",)
    begun = open_study(searching("optimizer.weight_decay=0.1", space=space))
    for change, sentence in (
        (("optimizer.weight_decay=0.2",), "optimizer.weight_decay with optimizer=sgd is 0.2 here, but 0.1 in the"),
        ((), "optimizer.weight_decay with optimizer=sgd is 0.0 here, but 0.1 in the study"),
        (
            ("optimizer.weight_decay=0.1", "optimizer.lr=0.1"),
            "optimizer.lr with optimizer=sgd is 0.1 here, but 0.025",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            open_study(searching(*change, space=space))
    old = {
        key: value
        for key, value in begun.user_attrs["definition"].items()
        if not (study._is_resolved(key) or study.OPTION in key)
    }
    begun.set_user_attr("definition", old)  # as it was noted before
    open_study(searching("optimizer.weight_decay=0.1", space=space))


@pytest.mark.whole
def test_a_study_of_a_version_without_the_other_limits_goes_on(searching: Callable[..., Search]) -> None:
    line = ("hydra.sweeper.n_trials=2",)
    work(searching(*line))
    begun = open_study(searching(*line))
    new = ("budget.multiply_adds", "budget.bytes", "budget.activations")
    old = {key: value for key, value in begun.user_attrs["definition"].items() if key not in new}
    assert len(old) == len(begun.user_attrs["definition"]) - 3
    begun.set_user_attr("definition", old)
    assert trials.count(work(searching("hydra.sweeper.n_trials=3")))["complete"] == 3
    with pytest.raises(ValueError, match="budget.bytes is 30000 here, but not set in the study"):
        open_study(searching("budget.bytes=30000"))


@pytest.mark.whole
def test_a_space_with_networks_over_several_limits_only_is_given_up(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bantam.search.study.MAX_OVER_BUDGET", 5)
    wanted = searching(
        "hydra/sweeper/sampler=random",
        "budget.parameters=null",
        "budget.multiply_adds=1000",
        "budget.activations=500",
        "hydra.sweeper.n_trials=2",
    )
    listed = work(wanted)
    smallest = {key: min(trial.user_attrs[key] for trial in listed) for key in ("multiply_adds", "activations")}
    assert study.hopeless(wanted, listed) == (
        f"5 networks in a row were over the budget, the smallest with {smallest['multiply_adds']:,} multiply-adds "
        f"and {smallest['activations']:,} bytes of activations: search smaller ones, or raise "
        "budget.multiply_adds and budget.activations"
    )


@pytest.mark.whole
def test_an_option_of_a_searched_group_is_not_edited_between_two_command_lines(
    searching: Callable[..., Search], tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "optimizer" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text((PROJECT / "conf" / "optimizer" / "sgd.yaml").read_text())
    line = (f"hydra.searchpath=[file://{tmp_path}/mine]",)
    space = ("optimizer=choice(adamw,own)", "batch_size=choice(64,128)")
    open_study(searching(*line, space=space))
    file.write_text(re.sub("(?m)^momentum:.*", "momentum: 0.7", file.read_text()))
    with pytest.raises(
        ValueError, match=r"^optimizer.momentum with optimizer=own is 0.7 here, but 0.8 in the study"
    ):
        open_study(searching(*line, space=space))


@pytest.mark.whole
def test_a_study_that_was_begun_before_a_key_existed_goes_on_where_that_is_as_it_was(
    searching: Callable[..., Search],
) -> None:
    begun = open_study(searching())
    before = dict(begun.user_attrs["definition"])
    for key in ("label_smoothing", "optimizer.weight_decay"):
        del before[key]
    begun.set_user_attr("definition", before)
    open_study(searching())
    with pytest.raises(ValueError, match=r"^label_smoothing is 0.1 here, but not set in the study"):
        open_study(searching("label_smoothing=0.1"))


@pytest.mark.whole
def test_what_comes_from_the_environment_belongs_to_the_study(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "3")
    begun = open_study(searching("seed=${oc.env:SEED}"))
    monkeypatch.setenv("SEED", "4")
    with pytest.raises(ValueError, match=r"^seed is 4 here, but 3 in the study"):
        open_study(searching("seed=${oc.env:SEED}"))
    begun.set_user_attr("definition", {**begun.user_attrs["definition"], "seed": "${oc.env:SEED}"})  # older
    open_study(searching("seed=${oc.env:SEED}"))


@pytest.mark.whole
def test_the_option_is_named_where_another_one_was_chosen(searching: Callable[..., Search]) -> None:
    begun = open_study(searching())
    with pytest.raises(
        ValueError, match=r"^data is auto here, but mnist5k in the study .*; give data=mnist5k, or"
    ):
        open_study(searching("data=auto", "data.became=mnist5k"))
    with pytest.raises(ValueError, match=r"^experiment is v1 here, but None in .*; give experiment=null, or"):
        open_study(searching("experiment=v1"))
    begun.set_user_attr("options", {})  # of an older study
    with pytest.raises(
        ValueError, match=r"^data._target_ is bantam.data.auto here, but bantam.data.mnist5k in the"
    ):
        open_study(searching("data=auto", "data.became=mnist5k"))


@pytest.mark.whole
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": "MNIST"}, "what data became was MNIST with the checksum 0 in trial 0, but is mnist5k with the"),
        (
            {"scored_images": 5},
            "the number of validation images held out was 5 in trial 0, but is 1000 in the study",
        ),
        ({"device": "tpu"}, r"device \(what it became\) was tpu in trial 0, but is cpu in the study study"),
    ],
)
def test_a_trial_that_had_other_images_or_another_device_is_not_believed(
    searching: Callable[..., Search], change: dict[str, Any], sentence: str
) -> None:
    wanted: Search

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        images = wanted.prepared.data
        own = {"data": images.name, "data_checksum": images.checksum, "split": "validation", "scored_images": 1000}
        if number == 0:
            own |= {**change, **({"data_checksum": "0"} if "data" in change else {})}
        return {**rate(number, settings), **own}

    wanted = searching("hydra.sweeper.n_trials=2", result=result, space=SPACE[:1])
    with pytest.raises(MachineFault, match=sentence):
        work(wanted)
    listed = work(searching("hydra.sweeper.n_trials=2", space=SPACE[:1]))
    assert trials.states(listed) == ["stopped", "complete", "complete"]
    assert listed[1].params == listed[0].params


@pytest.mark.whole
def test_a_network_that_bfloat16_cannot_compute_does_not_stop_a_search(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "precision_of", lambda cfg, device: torch.bfloat16)
    took = ("float32", "bfloat16")  # as precision=auto does where the processor has both
    wanted = searching(
        "hydra.sweeper.n_trials=2",
        result=lambda number, settings: {**rate(number, settings), "precision": took[number]},
        space=SPACE[:1],
    )
    assert trials.states(work(wanted)) == ["complete", "complete"]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_study_whose_creator_was_killed_is_begun_by_the_next(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    wanted = searching("hydra.sweeper.enqueue=[{optimizer.lr:0.025},{optimizer.lr:0.05}]", space=SPACE[:1])
    with monkeypatch.context() as patched:
        done = []

        def killed(method: Callable[..., Any]) -> Callable[..., Any]:
            def step(*positional: Any, **named: Any) -> Any:
                if len(done) == steps:
                    raise KeyboardInterrupt
                done.append(method.__name__)
                return method(*positional, **named)

            return step

        for name in ("set_user_attr", "enqueue_trial"):
            patched.setattr(optuna.Study, name, killed(getattr(optuna.Study, name)))
        with pytest.raises(KeyboardInterrupt):
            open_study(wanted)
    monkeypatch.setattr("bantam.search.study.time.sleep", lambda seconds: None)
    found = open_study(wanted)
    queued = [trial.system_attrs["fixed_params"] for trial in found.get_trials()]
    assert queued == [{"optimizer.lr": 0.025}, {"optimizer.lr": 0.05}]
    assert open_study(wanted).user_attrs["definition"] == found.user_attrs["definition"]


def test_a_study_of_another_program_is_left_alone(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = searching(space=SPACE[:1])
    monkeypatch.setattr("bantam.search.study.time.sleep", lambda seconds: None)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    other = optuna.create_study(
        study_name=wanted.settings.study_name, storage=storage.address(wanted.hydra), direction="maximize"
    )
    other.tell(other.ask(), 1.0)
    with pytest.raises(ValueError, match="was not begun by Bantam: choose another hydra.sweeper.study_name"):
        open_study(wanted)
    assert other.user_attrs == {}
