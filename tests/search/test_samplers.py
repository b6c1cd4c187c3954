from collections.abc import Callable
from typing import Any

import pytest
from searches import SPACE, TWO, sized, work

from bantam.search import checks, outcome, trials
from bantam.search.checks import check
from bantam.search.space import Search
from bantam.search.study import open_study
from bantam.training import folder as record
from bantam.training.loop import Epoch


@pytest.mark.whole
def test_one_seed_gives_the_same_search_twice(searching: Callable[..., Search]) -> None:
    first = work(searching("hydra.sweeper.n_trials=3"))
    second = work(searching("hydra.sweeper.n_trials=3", folder="other"))
    assert [trial.params for trial in first] == [trial.params for trial in second]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gp", "nsgaii", "multivariate_tpe"])
def test_the_sampler_learns_where_the_budget_ends(searching: Callable[..., Search], sampler: str) -> None:
    """The wider, the better and, above 16, the more over the budget: half of the space is no use."""
    few = {"gp": "n_startup_trials=5", "nsgaii": "population_size=8", "multivariate_tpe": "n_startup_trials=5"}
    wanted = searching(
        f"hydra/sweeper/sampler={sampler}",
        f"hydra.sweeper.sampler.{few[sampler]}",
        "hydra.sweeper.sampler.seed=6",
        f"hydra.sweeper.n_trials={15 if sampler == 'gp' else 40}",
        space=("model.width=range(8,31)", "optimizer.lr=interval(0.01,0.1)"),
    )
    over = [trials.over_budget(trial) for trial in work(wanted)]
    half = len(over) // 2
    assert sum(over[half:]) < sum(over[:half])
    assert sum(over[half:]) / len(over[half:]) < 0.5  # by chance it would be 0.6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["multivariate_tpe", "nsgaii", "gp"])
def test_a_trial_that_is_pruned_beside_two_objectives_does_not_stop_the_sampler(
    searching: Callable[..., Search], sampler: str
) -> None:
    """Optuna's TPE breaks on a pruned trial with reported epochs where there are two objectives."""
    few = {"multivariate_tpe": "n_startup_trials=3", "nsgaii": "population_size=4", "gp": "n_startup_trials=3"}
    wanted: Search

    def result(number: int, settings: dict[str, str]) -> dict[str, Any]:
        if number % 3 != 1:
            return sized(number, settings)
        folder = wanted.folder / str(number)
        folder.mkdir()
        record.write_history(folder, [Epoch(1, 0.1, 0.1, 90.0, 0.1, 85.0, None, None, 1.0, 1.0)])
        study = open_study(wanted)
        trial_id = study.get_trials(deepcopy=False)[number]._trial_id
        study._storage.set_trial_intermediate_value(trial_id, 1, 85.0)
        return {"verdict": "pruned", "reason": "pruned after epoch 1", "objective": None}

    wanted = searching(
        *TWO,
        f"hydra/sweeper/sampler={sampler}",
        f"hydra.sweeper.sampler.{few[sampler]}",
        "hydra.sweeper.sampler.seed=1",
        "hydra.sweeper.n_trials=9",
        result=result,
        space=("model.width=range(8,17)", "optimizer.lr=interval(0.01,0.1)"),
    )
    listed = work(wanted)
    assert trials.states(listed) == ["complete", "pruned", "complete"] * 3
    assert listed[1].values == [85.0, listed[1].user_attrs["parameters"]]
    assert trials.objective(listed[1], "pruned") is None
    assert not {1, 4, 7} & {trial.number for trial in outcome.front(listed)}


@pytest.mark.whole
@pytest.mark.parametrize("sampler", ["random", "multivariate_tpe"])
def test_neighbouring_seeds_have_nothing_in_common(searching: Callable[..., Search], sampler: str) -> None:
    """Seed 2 was seed 1, one trial later."""
    tried = []
    for seed in (1, 2, 3):
        study = open_study(
            searching(
                f"hydra/sweeper/sampler={sampler}",
                f"hydra.sweeper.sampler.seed={seed}",
                space=SPACE[:1],
                folder=f"seed-{seed}",
            )
        )
        tried.append({study.ask().suggest_float("optimizer.lr", 0.01, 0.1) for _ in range(8)})
    assert len(set().union(*tried)) == 24


def test_a_sampler_whose_package_is_missing_is_refused(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="hydra.sweeper.sampler is CmaEsSampler, which needs a package: pip install"
    ):
        check(searching("hydra/sweeper/sampler=cmaes"))
