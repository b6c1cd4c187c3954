"""Searched groups, keys that only some options have, and conditions that are written down."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from searches import TWO, work

from bantam.search.checks import check
from bantam.search.distributions import by_key
from bantam.search.space import Search, compose, end, known_settings, overrides

NETWORKS = ("model=v1,skeleton,v2", "model.dropout=interval(0,0.1)", "model.width=range(8,13)")


def anything(number: int, settings: dict[str, str]) -> dict[str, Any]:
    """A pretended accuracy, another one for every trial."""
    return {"objective": 90 + number / 100}


def spaces(*entries: str) -> str:
    return f"hydra.sweeper.spaces=[{','.join(entries)}]"


STEP = "{when:{scheduler:step},params:{optimizer.lr:'interval(0.01,0.02)',scheduler.gamma:'interval(0.1,0.2)'}}"
CYCLE = "{when:{scheduler:[one_cycle,cosine]},params:{optimizer.lr:'interval(0.1,0.2)'}}"


@pytest.mark.whole
def test_a_key_is_searched_only_where_the_network_has_it(searching: Callable[..., Search]) -> None:
    search = searching("hydra.sweeper.n_trials=12", space=NETWORKS, result=anything)
    listed = work(search)
    networks = {trial.params["model"] for trial in listed}
    assert networks == {"v1", "skeleton", "v2"}
    for trial in listed:
        assert ("model.dropout" in trial.params) == (trial.params["model"] != "skeleton")
        assert "model.width" in trial.params
        cfg, info = compose(search, trial.params)
        assert info.choices["model"] == trial.params["model"]
        assert cfg.model.width == trial.params["model.width"]
        assert cfg.model.get("dropout") == trial.params.get("model.dropout")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["multivariate_tpe", "gp", "nsgaii", "random", "qmc"])
def test_every_sampler_searches_a_conditional_space(searching: Callable[..., Search], sampler: str) -> None:
    settings = ("hydra.sweeper.n_trials=16", f"hydra/sweeper/sampler={sampler}")
    listed = work(searching(*settings, space=NETWORKS, result=anything))
    complete = [trial for trial in listed if trial.state.name == "COMPLETE" and trial.values[0] > 0]
    assert len(complete) == 16
    assert {"model.dropout" in trial.params for trial in complete} == {True, False}


@pytest.mark.whole
def test_a_grid_has_every_point_of_every_option_once(searching: Callable[..., Search]) -> None:
    space = ("model=v1,skeleton", "model.dropout=0.0,0.1", "model.width=8,10", "optimizer.momentum=0.5,0.9")
    search = searching("hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=99", space=space, result=anything)
    assert search.grid_size == 2 * 2 * 2 + 2 * 2
    tried = [tuple(sorted(trial.params.items())) for trial in work(search)]
    assert len(tried) == len(set(tried)) == 12
    assert {tuple(sorted(point.items())) for point in search.points()} == set(tried)


def test_every_point_of_a_grid_is_listed_once(searching: Callable[..., Search]) -> None:
    search = searching(space=("optimizer.lr=range(0.1,0.5,0.1)", "optimizer.nesterov=true,false"))
    points = search.points()
    assert points[:2] == [{"optimizer.lr": 0.1, "optimizer.nesterov": value} for value in (True, False)]
    assert points[2] == {"optimizer.lr": 0.2, "optimizer.nesterov": True}
    assert len(points) == 8
    with pytest.raises(ValueError, match=r"search optimizer.momentum with choice\(…\) or range\(…\)"):
        searching(space=("optimizer.momentum=interval(0,0.9)", "optimizer.lr=0.1,0.2")).points()


@pytest.mark.whole
def test_all_options_of_a_group(searching: Callable[..., Search]) -> None:
    search = searching(space=("model=glob(v*)", "scheduler=glob(*,exclude=loss_dip)"))
    assert search.space["model"].choices == ("v1", "v2")
    assert set(search.space["scheduler"].choices) == {
        "constant",
        "cosine",
        "milestones",
        "multistep",
        "one_cycle",
        "step",
    }
    check(search)
    with pytest.raises(
        ValueError, match=r"glob\(w\*\) cannot be searched: it chooses no option: model has dilated, "
    ):
        searching(space=("model=glob(w*)",))


@pytest.mark.whole
def test_conditions_that_are_written_down(searching: Callable[..., Search]) -> None:
    space = ("scheduler=step,one_cycle,cosine,constant", "optimizer.momentum=interval(0.5,0.9)")
    search = searching(spaces(STEP, CYCLE), "hydra.sweeper.n_trials=20", space=space, result=anything)
    ranges = {"step": (0.01, 0.02), "one_cycle": (0.1, 0.2), "cosine": (0.1, 0.2)}
    seen = set()
    for trial in work(search):
        settings = by_key(trial.params)
        schedule = settings["scheduler"]
        seen.add(schedule)
        assert ("scheduler.gamma" in settings) == (schedule == "step")
        assert ("optimizer.lr" in settings) == (schedule != "constant")
        assert sum(line.startswith("optimizer.lr=") for line in overrides(search, trial.params)) == (
            schedule != "constant"
        )
        if schedule != "constant":
            low, high = ranges[schedule]
            assert low <= compose(search, trial.params)[0].optimizer.lr <= high
    assert seen == {"step", "one_cycle", "cosine", "constant"}
    header = (search.folder / "trials.csv").read_text() if (search.folder / "trials.csv").exists() else ""
    assert "when" not in header


def test_a_condition_comes_before_what_has_none(searching: Callable[..., Search]) -> None:
    search = searching("hparams_search=optuna", spaces(STEP), space=("scheduler=step,cosine",))
    low = {s: end(search, 0, {"scheduler": s}) for s in ("step", "cosine")}
    assert compose(search, low["step"])[0].optimizer.lr == 0.01
    assert compose(search, low["cosine"])[0].optimizer.lr == 0.005
    assert {"scheduler.step_size", "scheduler.gamma"} <= by_key(low["step"]).keys()
    assert not any(name.startswith("scheduler.") for name in low["cosine"])


@pytest.mark.whole
def test_the_command_line_wins_over_conditions(searching: Callable[..., Search]) -> None:
    search = searching(spaces(STEP), space=("scheduler=step,cosine", "optimizer.lr=interval(0.3,0.4)"))
    assert by_key(end(search, 0, {"scheduler": "step"}))["optimizer.lr"] == 0.3
    search = searching(spaces(STEP), "optimizer.lr=0.3", space=("scheduler=step,cosine",))
    settings = end(search, 0, {"scheduler": "step"})
    assert "optimizer.lr" not in by_key(settings)
    assert compose(search, settings)[0].optimizer.lr == 0.3
    search = searching(spaces(STEP), "scheduler=cosine", space=("optimizer.momentum=interval(0.5,0.9)",))
    check(search)
    assert end(search, 0, {}).keys() == {"optimizer.momentum"}


def test_a_condition_on_a_value(searching: Callable[..., Search]) -> None:
    space = ("model=flexible", "model.early_separable=true,false")
    when = "{when:{model.early_separable:true},params:{model.early1:'range(4,7)',optimizer.nesterov:true}}"
    search = searching(spaces(when), space=space)
    check(search)
    assert end(search, 0, {"model.early_separable": True}) == {
        "model.early_separable": True,
        "model.early1": 4,
        "optimizer.nesterov": "true",
    }
    assert end(search, 0, {"model.early_separable": False}) == {"model.early_separable": False}


@pytest.mark.whole
def test_whole_experiments_are_searched(searching: Callable[..., Search]) -> None:
    space = ("experiment=v1,v2", "model.dropout=interval(0,0.1)")
    search = searching("hydra.sweeper.n_trials=4", space=space, result=anything)
    for trial in work(search):
        cfg, info = compose(search, trial.params)
        assert info.choices["model"] == trial.params["experiment"]
        assert cfg.data.validation == 1000


@pytest.mark.whole
def test_fixed_keys_are_for_the_options_that_have_them(searching: Callable[..., Search]) -> None:
    search = searching("scheduler.gamma=0.3", space=("scheduler=one_cycle,step",))
    check(search)
    step, cycle = ({"scheduler": option} for option in ("step", "one_cycle"))
    assert "scheduler.gamma=0.3" not in overrides(search, cycle)
    assert "scheduler.gamma=0.3" in overrides(search, step)
    assert compose(search, step)[0].scheduler.gamma == 0.3


@pytest.mark.whole
@pytest.mark.parametrize(
    "space",
    [
        ("scheduler=step,one_cycle", "optimizer.lr=interval(0.01,0.1)"),
        ("hparams_search=schedules",),
        ("experiment=v1,v2,champion",),
    ],
)
def test_a_fixed_key_may_be_one_that_the_default_option_lacks(
    searching: Callable[..., Search], space: tuple[str, ...]
) -> None:
    key, option = ("scheduler.end", "champion") if "experiment" in space[0] else ("scheduler.warmup", "one_cycle")
    search = searching(f"{key}=0.3", space=space)
    check(search)
    group = "experiment" if option == "champion" else "scheduler"
    having, lacking = ({group: name} for name in (option, "v1" if group == "experiment" else "step"))
    assert f"{key}=0.3" in overrides(search, having)
    assert compose(search, having)[0].scheduler[key.partition(".")[2]] == 0.3
    assert not any(line.startswith(key) for line in overrides(search, lacking))


@pytest.mark.whole
def test_a_fixed_key_that_no_option_has_is_refused_by_name(searching: Callable[..., Search]) -> None:
    with pytest.raises(ValueError, match="scheduler.warmp=0.3 is no key of any option that is searched"):
        check(searching("scheduler.warmp=0.3", space=("scheduler=step,one_cycle",)))
    for lines in (("scheduler.warmup=0.3",), ("optimizer.mom=0.3", "scheduler.warmup=0.3")):
        space = ("optimizer.lr=interval(0.01,0.1)", *("scheduler=step,one_cycle",) * (len(lines) - 1))
        with pytest.raises(ConfigCompositionException, match=f"Could not override '{lines[0].partition('=')[0]}'"):
            searching(*lines, space=space)


def test_a_key_without_a_value_is_a_key(searching: Callable[..., Search]) -> None:
    search = searching("hydra.sweeper.n_trials=2", space=("threads=1,2",), result=anything)
    assert all(trial.params["threads"] in (1, 2) for trial in work(search))


@pytest.mark.parametrize(
    ("overrides", "space", "sentence"),
    [
        ((), ("model=v1,v2", "model.dropuot=interval(0,1)"), "model=v1,v2 has no dropuot, which hydra.sweeper"),
        ((), ("model=v1,v3",), "model=v3 does not exist: did you mean model=v2?"),
        ((), ("model=v1,v2", "model.width=interval(4,8)"), "model.width takes whole numbers"),
        ((), ("scheduler=step,one_cycle", "scheduler.warmup=interval(0,2)"), "scheduler.warmup is 2"),
        (("scheduler.gamma=0.5",), ("scheduler=cosine,constant",), "scheduler.gamma=0.5 is no key of any option"),
        (
            (spaces("{params:{a:1}}"),),
            ("scheduler=step,cosine",),
            "hydra.sweeper.spaces[0] is {'params': {'a': 1}}",
        ),
        (
            (spaces("{when:{schedule:step},params:{optimizer.lr:'interval(0.1,0.2)'}}"),),
            ("scheduler=step,cosine",),
            "hydra.sweeper.spaces searches optimizer.lr when {schedule:step}, but schedule is no group and no key",
        ),
        (
            (spaces("{when:{scheduler:stpe},params:{optimizer.lr:'interval(0.1,0.2)'}}"),),
            ("scheduler=step,cosine",),
            "hydra.sweeper.spaces searches optimizer.lr when {scheduler:stpe}, but scheduler has no stpe: ",
        ),
        (
            (spaces("{when:{scheduler:step},params:{scheduler.warmup:'interval(0.1,0.2)'}}"),),
            ("scheduler=step,cosine",),
            "scheduler.warmup is searched when {scheduler:step}, but no such trial has it: leave it out",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    searching: Callable[..., Search], overrides: tuple[str, ...], space: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        check(searching(*overrides, space=space))
    assert "\n" not in str(error.value)


@pytest.mark.whole
def test_known_settings_of_an_option(searching: Callable[..., Search]) -> None:
    enqueue = "[{scheduler:one_cycle,optimizer.lr:0.15},{scheduler:step,optimizer.lr:0.015,scheduler.gamma:0.15}]"
    search = searching(
        spaces(STEP, CYCLE),
        f"hydra.sweeper.enqueue={enqueue}",
        "hydra.sweeper.n_trials=2",
        space=("scheduler=step,one_cycle",),
        result=anything,
    )
    assert len(known_settings(search)[0]) == 2
    first, second = work(search)
    assert by_key(first.params) == {"scheduler": "one_cycle", "optimizer.lr": 0.15}
    assert by_key(second.params) == {"scheduler": "step", "optimizer.lr": 0.015, "scheduler.gamma": 0.15}


@pytest.mark.whole
def test_a_study_is_about_its_conditions(searching: Callable[..., Search]) -> None:
    line = ("hydra.sweeper.n_trials=2",)
    work(searching(*line, spaces(STEP), space=("scheduler=step,cosine",), result=anything))
    other = STEP.replace("0.02", "0.03")
    with pytest.raises(ValueError, match=re.escape("optimizer.lr is 0.01 to 0.03 where {scheduler:step} here")):
        work(searching(*line, spaces(other), space=("scheduler=step,cosine",), result=anything))


@pytest.mark.whole
def test_networks_over_the_budget_among_options(searching: Callable[..., Search]) -> None:
    space = ("model=v1,flexible", "model.width=range(8,21)", "model.late1=range(8,30)")
    listed = work(searching("hydra.sweeper.n_trials=10", *TWO, space=space, result=anything))
    assert all("model.width" not in trial.params for trial in listed if trial.params["model"] == "flexible")
    assert all("parameters" in trial.user_attrs for trial in listed)


OF_SCHEDULES = {
    "constant": set(),
    "step": {"scheduler.step_size", "scheduler.gamma"},
    "milestones": {"scheduler.milestones.0", "scheduler.milestones.1", "scheduler.gamma"},
    "cosine": set(),
    "one_cycle": {"scheduler.warmup", "scheduler.end"},
}


@pytest.mark.whole
def test_one_value_for_a_key_that_only_some_options_have(searching: Callable[..., Search]) -> None:
    space = ("scheduler=step,one_cycle", "scheduler.warmup=choice(0.3)", "optimizer.lr=interval(0.01,0.1)")
    search = searching("hydra.sweeper.n_trials=8", "hydra/sweeper/sampler=random", space=space, result=anything)
    for trial in work(search):
        cfg, _ = compose(search, trial.params)
        assert cfg.scheduler.get("warmup") == (0.3 if trial.params["scheduler"] == "one_cycle" else None)


@pytest.mark.slow
def test_the_space_of_schedules(searching: Callable[..., Search]) -> None:
    random = ("hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=40")
    search = searching("hparams_search=schedules", *random, space=(), result=anything)
    check(search)
    listed = work(search)
    seen = {(trial.params["model"], trial.params["scheduler"]) for trial in listed}
    assert seen == {(model, schedule) for model in ("v2", "flexible") for schedule in OF_SCHEDULES}
    assert [trial.params["model"] for trial in listed[:2]] == ["v2", "flexible"]
    for trial in listed:
        settings = by_key(trial.params)
        schedule = settings["scheduler"]
        shared = {"model", "scheduler", "optimizer.lr", "optimizer.momentum"}
        assert settings.keys() == shared | OF_SCHEDULES[schedule]
        cfg, _ = compose(search, trial.params)
        assert cfg.optimizer.lr == settings["optimizer.lr"] <= (0.5 if schedule == "one_cycle" else 0.2)
        if schedule == "milestones":
            assert list(cfg.scheduler.milestones) == [settings[f"scheduler.milestones.{i}"] for i in (0, 1)]
