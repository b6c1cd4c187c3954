import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from searches import hydra

from bantam.search import pruners


def ended(parameters: int, *accuracies: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    """A trial with its accuracy in percent after each epoch."""
    return create_trial(
        state=state,
        values=[accuracies[-1], parameters] if state == TrialState.COMPLETE else None,
        intermediate_values=dict(enumerate(accuracies, 1)),
        user_attrs={"parameters": parameters},
    )


@pytest.mark.parametrize(
    ("accuracies", "parameters", "pruned"),
    [
        ((80.0, 90.0), 5000, True),  # behind three, one of them as large as itself
        ((80.0, 90.0), 4999, False),  # behind two
        ((80.0, 92.5), 5000, False),  # of the three it is behind one
        ((80.0,), 5000, False),  # too early
        ((80.0, 99.0, 90.0, 90.0), 5000, False),  # nobody has reported so late an epoch
    ],
)
def test_a_trial_is_pruned_where_enough_smaller_ones_were_better(
    accuracies: tuple[float, ...], parameters: int, pruned: bool
) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(
        [
            ended(3000, 85.0, 91.0, 93.0),
            ended(4000, 85.0, 92.0, state=TrialState.PRUNED),
            ended(5000, 85.0, 93.0, 94.0),
            ended(6000, 95.0, 95.0, 95.0),  # more parameters
            ended(2000, 95.0, 95.0, 95.0, state=TrialState.RUNNING),
        ]
    )
    pruner = pruners.Dominated(n_warmup_steps=2, n_min_trials=3)
    now = ended(parameters, *accuracies, state=TrialState.RUNNING)
    assert pruner.prune(study, now) == pruned


def test_networks_are_compared_by_the_cost_that_is_an_objective() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    cheap, dear = {"parameters": 9000, "bytes": 10}, {"parameters": 10, "bytes": 9000}
    for costs in (cheap, dear):
        study.add_trial(
            create_trial(values=[91.0, costs["bytes"]], intermediate_values={10: 91.0}, user_attrs=costs)
        )
    conf = hydra("hparams_search=optuna", "hydra/sweeper/pruner=dominated", "hydra.sweeper.pruner.n_min_trials=2")
    now = create_trial(
        state=TrialState.RUNNING, intermediate_values={10: 90.0}, user_attrs={"parameters": 9000, "bytes": 100}
    )
    assert pruners.build(conf.sweeper.pruner).prune(study, now)
    assert not pruners.build(conf.sweeper.pruner, "bytes").prune(study, now)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("none", "NopPruner"),
        ("median", "MedianPruner"),
        ("successive_halving", "SuccessiveHalving"),
        ("hyperband", "HyperbandPruner"),
        ("dominated", "Dominated"),
    ],
)
def test_every_pruner_can_be_built(option: str, name: str) -> None:
    node = hydra("hparams_search=optuna", f"hydra/sweeper/pruner={option}")
    assert type(pruners.build(node.sweeper.pruner)).__name__ == name


@pytest.mark.parametrize(
    ("accuracies", "far_behind", "pruned"),
    [
        ((40.0, 40.0), 1.5, True),  # errs 60 times in a hundred, the worst completed trial 20 times
        ((40.0, 70.1), 1.5, False),
        ((40.0, 69.9), 1.5, True),
        ((40.0, 69.9), 2.0, False),
        ((40.0, 40.0), None, False),
        ((1.0,), 1.5, False),  # after one epoch nobody is
        ((72.0, 60.0), 1.5, False),  # its best counts
        ((40.0, 40.0, 40.0), 1.5, False),  # only one completed trial has reported so late an epoch
    ],
)
def test_a_trial_that_is_far_behind_every_completed_one_is_pruned_before_a_rung(
    accuracies: tuple[float, ...], far_behind: float | None, pruned: bool
) -> None:
    study = optuna.create_study(direction="maximize")
    pruner = pruners.SuccessiveHalving(far_behind, min_resource=5, reduction_factor=2)
    study.pruner = pruner

    def told(*reported: float, state: TrialState = TrialState.COMPLETE) -> None:
        trial = study.ask()
        for epoch, accuracy in enumerate(reported, 1):
            trial.report(accuracy, epoch)
        study.tell(trial, reported[-1] if state == TrialState.COMPLETE else None, state)

    told(99.0, 99.5, state=TrialState.PRUNED)  # was not completed
    told(70.0, 80.0)
    now = study.ask()
    now.report(1.0, 2)
    assert not now.should_prune()  # one completed trial is too few
    study.tell(now, state=TrialState.FAIL)
    told(90.0, 85.0, 95.0)
    study.add_trial(create_trial(value=float("-inf")))  # a network over the budget, as some samplers are told
    now = study.ask()
    for epoch, accuracy in enumerate(accuracies, 1):
        now.report(accuracy, epoch)
    assert now.should_prune() == pruned


@pytest.mark.parametrize(
    ("accuracies", "far_behind", "pruned"),
    [
        ((80.0, 80.0, 84.9), 1.5, True),  # errs 15.1 times in a hundred, the best completed trial 10 times
        ((80.0, 80.0, 85.1), 1.5, False),
        ((80.0, 80.0, 84.9), 2.0, False),
        ((80.0, 80.0, 84.9), None, False),
        ((80.0, 86.0, 84.9), 1.5, False),  # its best counts
        ((80.0, 80.0), 1.5, False),  # up to the rung it is compared with the worst
        ((80.0, 80.0, 84.9, 84.9), 1.5, False),  # no completed trial has reported so late an epoch
    ],
)
def test_past_the_first_rung_a_trial_is_compared_with_the_best_completed_one(
    accuracies: tuple[float, ...], far_behind: float | None, pruned: bool
) -> None:
    study = optuna.create_study(direction="maximize")
    pruner = pruners.SuccessiveHalving(far_behind, min_resource=2, reduction_factor=10)
    for value, *reported in ((92.0, 70.0, 80.0, 90.0), (91.0, 90.0, 95.0, 97.0)):  # the best by its objective
        study.add_trial(create_trial(value=value, intermediate_values=dict(enumerate(reported, 1))))
    study.add_trial(create_trial(value=float("-inf")))
    study.pruner = pruner
    now = study.ask()
    for epoch, accuracy in enumerate(accuracies, 1):
        now.report(accuracy, epoch)
    assert now.should_prune() == pruned


def test_at_a_rung_the_worse_half_is_pruned_though_not_far_behind() -> None:
    study = optuna.create_study(
        direction="maximize", pruner=pruners.SuccessiveHalving(1.5, min_resource=2, reduction_factor=2)
    )
    for accuracy, pruned in ((90.0, False), (91.0, False), (89.0, True)):
        trial = study.ask()
        trial.report(accuracy, 1)
        assert not trial.should_prune()
        trial.report(accuracy, 2)
        assert trial.should_prune() == pruned
        study.tell(trial, None if pruned else accuracy, TrialState.PRUNED if pruned else TrialState.COMPLETE)
