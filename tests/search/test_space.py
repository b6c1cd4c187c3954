import re
from collections.abc import Callable

import pytest
from searches import SPACE, TWO

from bantam.search.checks import check
from bantam.search.space import Search, compose, known_settings


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
        (
            ("hydra.sweeper.timeout=nan",),
            SPACE,
            "hydra.sweeper.timeout is nan: it must be a finite",
        ),
        (("hydra.sweeper.timeout=-1",), SPACE, "hydra.sweeper.timeout is -1.0: it must be above 0"),
        (("hydra.sweeper.max_failure_rate=2",), SPACE, "hydra.sweeper.max_failure_rate is 2.0: it must be"),
        (("hydra.sweeper.direction=minimize",), SPACE, "hydra.sweeper.direction must be maximize"),
        ((TWO[0],), SPACE, "hydra.sweeper.pruner is SuccessiveHalving, which knows one objective, and"),
        ((TWO[0], "hydra/sweeper/pruner=median"), SPACE, "hydra.sweeper.pruner is MedianPruner"),
        ((*TWO, "hydra.sweeper.confirm.top=3"), SPACE, "hydra.sweeper.confirm.top is 3, but with two objectives"),
        (
            ("hydra.sweeper.objectives=[parameters]",),
            SPACE,
            "hydra.sweeper.objectives is [parameters]: it must",
        ),
        (("hydra.sweeper.objectives=[]",), SPACE, "hydra.sweeper.objectives is []: it must be [accuracy] or"),
        (("hydra.sweeper.enqueue=[{optimizer.lrr:1}]",), SPACE, "hydra.sweeper.enqueue sets optimizer.lrr, which"),
        (
            ("hydra.sweeper.enqueue=[{optimizer.lr:0.05},{model.width:21}]",),
            SPACE,
            "hydra.sweeper.enqueue sets model.width, but 21 is not in 8 to 20",
        ),
        ((), ("seed=1,2,3", *SPACE), "seed is searched, but a lucky seed is no better setting: leave it out"),
        ((), ("++seed=range(1,4)", *SPACE), "seed is searched, but a lucky seed is no better setting"),
        ((), ("data.split_seed=1,2", *SPACE), "data.split_seed is searched, but trials are compared on the same"),
        ((), ("data=mnist,mnist5k", *SPACE), "data is searched, but trials are compared on the same images"),
        (
            ("data.split_seed=${model.width}",),
            SPACE,
            "data.split_seed is 8 in some trials and 20 in others, but trials are compared on the same images",
        ),
        (
            (),
            ("scheduler.step_size=choice(2 3,4)", *SPACE),
            "scheduler.step_size='2 3' is refused: Value '2 3' of type 'str' could not be converted to Integer; "
            "between several values of a choice there are commas",
        ),
        (
            (),
            ("optimizer.lr=choice(0.1,no)",),
            "optimizer.lr=no is refused: Value 'no' of type 'str' could not be",
        ),
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


def test_lists_may_be_searched_and_known(searching: Callable[..., Search]) -> None:
    line = "hydra.sweeper.enqueue=[{model._target_:bantam.models.V2},{batch_size:32}]"
    wanted = searching(line, space=("batch_size=32,64",))
    assert known_settings(wanted) == ([{"batch_size": 32}], [])  # the other key is not searched
    space = ("optimizer.betas=choice([0.9,0.99],[0.8,0.9])",)
    known = searching("optimizer=adamw", "hydra.sweeper.enqueue=[{optimizer.betas:[0.8,0.9]}]", space=space)
    assert known_settings(known) == ([{"optimizer.betas": "[0.8,0.9]"}], [])
    assert list(compose(known, known_settings(known)[0][0])[0].optimizer.betas) == [0.8, 0.9]
    with pytest.raises(
        ValueError, match=r"enqueue sets optimizer.betas, but \[0.8,0.99\] is not in \[0.9,0.99\],"
    ):
        check(searching("optimizer=adamw", "hydra.sweeper.enqueue=[{optimizer.betas:[0.8,0.99]}]", space=space))


def test_a_range_that_is_typed_wins_over_settings_of_a_file(searching: Callable[..., Search]) -> None:
    wanted = searching("hparams_search=optuna", space=("model.width=range(3,6)",))
    known, left_out = known_settings(wanted)
    assert known == []
    assert left_out == [
        "hydra.sweeper.enqueue sets model.width, but 16 is not in 3 to 5: these settings are left out"
    ]


def test_a_search_of_a_file_holds_out_as_many_images_as_there_are(searching: Callable[..., Search]) -> None:
    """`data=mnist5k` has 4,000 to train on; hparams_search=optuna asks for 5,000."""
    wanted = searching("hparams_search=optuna", "hydra.sweep.subdir=${hydra.job.num}", validation=None)
    check(wanted)
    assert wanted.notes == ["data.validation is 1,000 here, not 5,000: mnist5k has only 4,000 images to train on"]
    assert wanted.fixed[-1] == "data.validation=1000"
    assert compose(wanted, {})[0].data.validation == 1000
    assert len(wanted.prepared.data.held_out_labels) == 1000


def test_where_the_data_are_and_what_auto_became_is_told_to_every_trial(
    searching: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bantam.data.decide", lambda root: "mnist5k")
    monkeypatch.setenv("HOME", "/nowhere/a b")
    wanted = searching("data=auto", "data.root='~/x'", "data.validation=2000")
    check(wanted)
    assert wanted.fixed[-2:] == ["data.root='/nowhere/a b/x'", "data.became=mnist5k"]
    assert len(wanted.prepared.data.held_out_labels) == 1000
    assert "1,000 validation images are held out, not 2,000" in wanted.prepared.data.instead
