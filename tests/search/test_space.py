import re
from collections.abc import Callable

import pytest
from searches import SPACE, TWO

from bantam.search.space import Search, check


@pytest.mark.parametrize(
    ("overrides", "space", "sentence"),
    [
        (("scheduler=cosine",), ("scheduler.step_size=range(2,5)",), "scheduler=cosine has no step_size, which"),
        ((), ("optimizer.lrr=interval(0,1)",), "optimizer=sgd has no lrr"),
        ((), ("batch_sise=choice(1,2)",), "batch_sise is searched, but is no key"),
        ((), ("model.width=interval(4,8)",), "model.width takes whole numbers: search 'model.width=range(4,9)'"),
        ((), ("optimizer.lr=interval(0.0,0.1)",), "optimizer.lr is 0.0: it must be above 0"),
        ((), ("optimizer.momentum=interval(0.5,1.0)",), "optimizer.momentum is 1.0: it must be"),
        ((), (), "there is nothing to search"),
        (("data.validation=0",), SPACE, "data.validation is 0: a search chooses by images"),
        (("data.validation=5000",), SPACE, "data.validation is 5,000"),
        (("epochs=16",), SPACE, "epochs is 16, 1 over budget.epochs=15"),
        (("dry_run=true",), SPACE, "dry_run is about one run"),
        (("hydra.sweeper.n_trials=0",), SPACE, "hydra.sweeper.n_trials is 0: it must be at least 1"),
        (("hydra.sweeper.n_jobs=0",), SPACE, "hydra.sweeper.n_jobs is 0: it must be at least 1"),
        (("hydra.sweeper.timeout=-1",), SPACE, "hydra.sweeper.timeout is -1.0: it must be above 0"),
        (("hydra.sweeper.max_failure_rate=2",), SPACE, "hydra.sweeper.max_failure_rate is 2.0: it must be"),
        (("hydra.sweeper.direction=minimize",), SPACE, "hydra.sweeper.direction must be maximize"),
        ((TWO[0],), SPACE, "hydra.sweeper.pruner is SuccessiveHalvingPruner, which knows one objective, and"),
        ((TWO[0], "hydra/sweeper/pruner=median"), SPACE, "hydra.sweeper.pruner is MedianPruner"),
        ((*TWO, "hydra.sweeper.confirm.top=3"), SPACE, "hydra.sweeper.confirm.top is 3, but with two objectives"),
        (
            ("hydra.sweeper.objectives=[parameters]",),
            SPACE,
            "hydra.sweeper.objectives is [parameters]: it must",
        ),
        (("hydra.sweeper.objectives=[]",), SPACE, "hydra.sweeper.objectives is []: it must be [accuracy] or"),
        (("hydra.sweeper.enqueue=[{optimizer.lrr:1}]",), SPACE, "hydra.sweeper.enqueue sets optimizer.lrr, which"),
        (("hydra/sweeper/sampler=grid",), SPACE, "hydra.sweeper.sampler cannot be built: GridSampler only"),
        (("hydra.sweeper.sampler._target_=os.getcwd",), SPACE, "hydra.sweeper.sampler cannot be built"),
        (("hydra.sweeper.pruner._target_=os.getcwd",), SPACE, "hydra.sweeper.pruner cannot be built"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_any_trial(
    searching: Callable[..., Search], overrides: tuple[str, ...], space: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        check(searching(*overrides, space=space))
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)
