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
        ("percentile", "PercentilePruner"),
        ("successive_halving", "SuccessiveHalvingPruner"),
        ("hyperband", "HyperbandPruner"),
        ("dominated", "Dominated"),
    ],
)
def test_every_pruner_can_be_built(option: str, name: str) -> None:
    node = hydra("hparams_search=optuna", f"hydra/sweeper/pruner={option}")
    assert type(pruners.build(node.sweeper.pruner)).__name__ == name
