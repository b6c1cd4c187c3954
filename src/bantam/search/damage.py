"""What is gone from the storage of a search, or cannot be in it: no row is believed without a look."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from bantam import errors
from bantam.search import distributions, space, storage, trials
from bantam.search.space import Search


def error(search: Search, what: str) -> ValueError:
    """What to raise for a storage that is damaged: its address, what is wrong, and what helps."""
    where = storage.shown(storage.address(search.hydra))
    remedy = f"restore it, or begin another study with {search.another}"
    return ValueError(f"hydra.sweeper.storage={where} is damaged ({what}): {remedy}")


@contextmanager
def in_one_sentence(search: Search) -> Iterator[None]:
    """Raise ValueError for whatever damaged rows lead Optuna to."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError):  # it does not answer
        raise
    except Exception as found:
        if errors.is_meant_for_users(found):
            raise
        raise error(search, f"{type(found).__name__}: {' '.join(str(found).split())}") from found


def refuse_missing(search: Search, study: Study) -> None:
    """Raise ValueError where a study lacks what it is about, or trials that have folders."""
    began = _folders(search)  # first: others may begin trials meanwhile
    listed = study.get_trials(deepcopy=False)
    numbers = {trial.number for trial in listed}
    gone = [number for number in range(max([*began, *numbers], default=-1) + 1) if number not in numbers]
    if gone:
        raise error(search, f"trial {gone[0]} is not in it")
    if not study.directions:
        raise error(search, "it does not say what is maximized")
    definition = study.user_attrs.get("definition")
    if (definition is None and began) or not isinstance(definition, dict | None):
        raise error(search, "it does not say what the study is about")


def refuse_impossible(search: Search, listed: Sequence[FrozenTrial]) -> None:
    """Raise ValueError where a trial that came to its end lacks settings, costs or an accuracy.

    The study is the one that is asked for, so its space is known.
    """
    for trial in listed:
        if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        what = ""
        if name := space.following(search, trial.params):
            what = f"no {distributions.key_of(name)}"
        elif "parameters" not in trial.user_attrs:
            what = "no parameters"
        elif trial.state == TrialState.COMPLETE and not trials.over_budget(trial):
            value = (trial.values or [None])[0]
            if value is None or not 0 <= value <= 100:
                what = f"an accuracy of {value} %" if value is not None else "no accuracy"
        if what:
            raise error(search, f"trial {trial.number} has {what}")


def _folders(search: Search) -> list[int]:
    """The numbers of the trials that have folders."""
    folders = [path for path in search.folder.glob("[0-9]*") if (path / ".hydra").is_dir()]
    return [int(path.name) for path in folders if path.name.isdecimal()]
