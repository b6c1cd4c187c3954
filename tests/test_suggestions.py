"""What is said to somebody who typed an option or a key that does not exist."""

import re
from pathlib import Path

import pytest
from commands import Bantam
from conftest import PROJECT
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bantam import suggestions
from bantam.nearest import nearest

KEYS = ["epochs", "optimizer.lr", "optimizer.momentum", "model.width", "data.root", "target.accuracy", "scheduler"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("optimizer.momentun", "optimizer.momentum"),
        ("momentum", "optimizer.momentum"),
        ("acuracy", "target.accuracy"),
        ("epoch", "epochs"),
        ("schedular", "scheduler"),
        ("train_epochs", "epochs"),
        ("learning_rate", "optimizer.lr"),
        ("model.dropout", None),  # no data.root
        ("zzz", None),
    ],
)
def test_the_nearest_key(typed: str, meant: str | None) -> None:
    assert nearest(typed, KEYS) == meant


def test_of_equal_names_that_of_the_nearest_group() -> None:
    assert nearest("schedulr.epochs", ["epochs", "scheduler.epochs"]) == "scheduler.epochs"
    assert nearest("epochs", ["scheduler.epochs", "budget.epochs"]) in ("scheduler.epochs", "budget.epochs")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("optimizer.lr=interval(0", "is cut off: add )"),
        ("optimizer.lr=choice([1,2", "is cut off: add ])"),
        ("optimizer.lr=choice([1,2)", "has a ) where ] is missing: add ]"),
        ("optimizer.lr=interval(0,1))", "has a ) that closes nothing: leave it out"),
        ("model.widths=[1,2", "is cut off: add ]"),
        ("hydra.sweeper.enqueue=[{optimizer.lr:1]", "has a ] where } is missing: add }"),
        ("data.root='my file", "begins a quote that does not end: add '"),
        ('data.root="my \\" file', 'begins a quote that does not end: add "'),
        ("optimizer.lr=interval(0,,1)", "cannot be read ("),
        ("optimizer.lr=interval(a,b)", "cannot be read ("),
    ],
)
def test_a_value_that_is_cut_off_is_one_sentence(typed: str, said: str) -> None:
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides([typed])
    about = str(suggestions.suggestion(caught.value))
    assert about.startswith(f"{typed} {said}"), about
    assert "\n" not in about
    assert "https" not in about


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config-dir", "nowhere"), "nowhere does not exist: give one with options, such as "),
        (("--config-dir", "optionen"), "optionen does not exist: did you mean --config-dir options?"),
        (("-m", "--config-dir", "options/file"), "options/file is no folder: give one with options"),
        (("--config-path", "nowhere"), "nowhere is no folder; options of your own are found with --config-dir"),
        (("--config-name", "nowhere"), "--config-name nowhere does not exist: leave it out"),
    ],
)
def test_a_folder_of_options_that_is_none_is_one_sentence(
    bantam: Bantam, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "options").mkdir()
    (tmp_path / "options" / "file").touch()
    result = bantam("train.py", *words, "dry_run=true")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: --config-")
    assert said in line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("model=v1,v2", "model=v1,v2 stands for several runs: add -m"),
        ("seed=range(0,3)", "seed=range(0,3) stands for several runs: add -m"),
        (
            "tracker=mlflow,wandb",
            "tracker=mlflow,wandb stands for several runs: add -m; a list, where the key takes one, is "
            "tracker=[mlflow,wandb]",
        ),
    ],
)
def test_several_values_for_one_run(bantam: Bantam, typed: str, said: str) -> None:
    assert bantam("train.py", typed, "dry_run=true").stderr == f"Error: {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "model=skeleton", "v1"), "have commas and no spaces between them, as in model=skeleton,v1"),
        (("model=skeleton", "v1"), "have commas and no spaces between them, as in -m model=skeleton,v1"),
        (("-m", "model=skeleton,", "v1,", "v2"), "no spaces between them, so write model=skeleton,v1,v2"),
        (("-m", "model=skeleton", ",v1"), "no spaces between them, as in model=skeleton,v1"),
        (("-m", "model=skeleton v1"), "no spaces between them, so write model=skeleton,v1"),
        (("-m", "model=[skeleton v1]"), "no spaces between them, so write model=skeleton,v1"),
        (("model=[skeleton,", "v1]"), "choose one, or compare them, -m model=skeleton,v1"),
        (("tracker=[mlflow wandb]",), "so write 'tracker=[mlflow,wandb]'"),
        (("data.mean=[0.5,", "0,", "1]"), "so write 'data.mean=[0.5,0,1]'"),
        (("data.mean=[0.5 0 1]",), "where several values are meant, write 'data.mean=[0.5,0,1]'"),
        (("-m", "seed='1 2'"), "where several values are meant, write seed=1,2"),
        (("-m", "seed=1 2"), "where several values are meant, write seed=1,2"),
        (("-m", "optimizer.lr=choice(0.1 0.2)"), "where several values are meant, write optimizer.lr=0.1,0.2"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_spaces_where_commas_are_meant(bantam: Bantam, words: tuple[str, ...], said: str) -> None:
    result = bantam("train.py", *words, "dry_run=true")
    assert result.returncode == 1
    assert result.stderr.endswith(f"{said}\n"), result.stderr


def test_spaces_around_an_equals_sign_are_no_commas(bantam: Bantam) -> None:
    result = bantam("train.py", "model=v2", "epochs", "=", "3")
    said = "'epochs' is no override: give each by itself, as key=value without spaces around the =\n"
    assert result.stderr == f"Error: {said}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("confirm.py", "a", "--trials", "1,2"),
            "give them with spaces and no commas between them, as in --trials 1 2",
        ),
        (("report.py", "a,b"), "a,b is no folder: give folders with spaces instead of commas, a b"),
        (("report.py", "a,", "b"), "a, is no folder: give folders with spaces instead of commas, a"),
        (("table.py", "a,b"), "a,b is no folder: give folders with spaces instead of commas, a b"),
        (("track.py", "a,b", "tracker=mlflow"), "give folders with spaces instead of commas, a b"),
        (("track.py", "a", "tracker=mlflow", "wandb"), "typed as a list, 'tracker=[mlflow,wandb]'"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_commas_where_spaces_are_meant(bantam: Bantam, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    result = bantam(*words)
    assert result.returncode > 0
    assert result.stderr.endswith(f"{said}\n"), result.stderr


@pytest.mark.parametrize("several", [(), ("-m",)], ids=["one run", "multirun"])
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lr=0.1", "lr is no key: did you mean optimizer.lr=0.1? "),
        ("modle=v1", "modle is no key: did you mean model=v1? "),
        ("optimizer.vector_lr=1", "is a key of optimizer=muon, which is not chosen: add optimizer=muon"),
        ("optimizer.zzz=1", "optimizer.zzz is no key: there are optimizer.lr, optimizer.momentum, "),
        (
            "model.head=1",
            "is a key of model=dilated, flexible, shared, of which none is chosen: choose one",
        ),
        ("model.width==8", "model.width==8 has two =: write model.width=8"),
        ("model=net(1).py:Net", """has letters that Hydra takes only in quotes: write 'model="net(1).py:Net"'"""),
        ("target.acc=99", "target.acc is no key: did you mean target.accuracy=99?"),
        ("data=MNIST", "data=MNIST does not exist: did you mean data=mnist? "),
        ("data.mean=grey", "data.mean=grey is refused: Value 'grey' is neither a number nor a list of them"),
        ("model=v3", "model=v3 does not exist: did you mean model=v2? There are dilated, flexible, "),
        ("model=Net.py", "model=Net.py names no class: write model=Net.py:Net, where Net is the class"),
        ("experiment=champoin", "experiment=champoin does not exist: did you mean experiment=champion? "),
        ("hydra/sweeper=bantm", "hydra/sweeper=bantm does not exist: did you mean hydra/sweeper=bantam? "),
        ("hydra.job.nam=x", "did you mean hydra.job.name=x? +hydra.job.nam=x would add it"),
        ("model=", "model= does not exist: there are dilated, flexible, "),
        ("+optimizer.lr=1", "+optimizer.lr=1 adds a key that is there already: write optimizer.lr=1"),
        ("model=../a/mine.py:Net", "takes in no option: write model=/"),
        ("model=null", "model=null chooses nothing: there are dilated, flexible, "),
        ("hydra/launcher=null", "hydra/launcher=null chooses nothing: there are basic, "),
        ("tracker=3", "tracker=3 chooses nothing: there are mlflow, none, "),
        ("tracker=[tensorboard,null]", "tracker=[tensorboard,null] chooses nothing: there are mlflow, "),
        ("tracker=[mlflw]", "tracker=mlflw does not exist: did you mean tracker=mlflow? "),
        (
            "tracker.mlflow.uri=x",
            "tracker.mlflow.uri is a key of tracker=mlflow, which is not chosen: add tracker=m",
        ),
        ("~optimizer.lr", "~optimizer.lr is refused: a key of a run cannot be taken away; give it a value"),
        ("model=ü", "model=ü has letters that Hydra takes only in quotes: write "),
        ("", "'' is no override: give each by itself, as key=value"),
        ("target=99", "one value to a group of keys: choose from target.accuracy, target.last_epochs"),
        ("data.root=~/my.npz", """takes only in quotes: write 'data.root="~/my.npz"'"""),
        ("data.root=it's.npz", "has letters that Hydra takes only in quotes: write "),
        ("model.width=range(0", "model.width=range(0 is cut off: add )"),
        ("data.root=a=b.npz", """takes only in quotes: write 'data.root="a=b.npz"'"""),
        ("model=v2 epochs=1", "'model=v2 epochs=1' is no override: give each by itself, as key=value"),
        ("optimizer.lr=fast", "optimizer.lr=fast is refused: Value 'fast' of type 'str' could not be converted"),
        ("hydra.job.env_copy=5", "is refused: hydra.job.env_copy is a list, so write 'hydra.job.env_copy=[5]'"),
        ("hydra.job.env_copy={a:1}", "hydra.job.env_copy is a list, so write 'hydra.job.env_copy=[{a:1}]'"),
        ("device=gpu", "device=gpu is refused: Invalid value 'gpu', expected one of"),
    ],
)
def test_one_sentence_with_what_was_meant(
    bantam: Bantam, tmp_path: Path, several: tuple[str, ...], typed: str, said: str
) -> None:
    result = bantam("train.py", *several, typed)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert said in line
    assert "search path" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["lr=interval(0.01,0.1)"],
            "lr is searched, but is no key of the configuration: did you mean optimizer.lr?",
        ),
        (["model=v3"], "model=v3 does not exist: did you mean model=v2?"),
        (["model=v1,v3"], "model=v3 does not exist: did you mean model=v2?"),
        (["lr=0.1"], "lr is no key: did you mean optimizer.lr=0.1?"),
    ],
    ids=" ".join,
)
def test_in_a_search_too(bantam: Bantam, tmp_path: Path, typed: list[str], said: str) -> None:
    own = (
        "hydra/sweeper=bantam",
        "hydra.sweep.dir=study",
        "model.width=range(8,10)",
        "data=mnist5k",
        "data.validation=100",
    )
    result = bantam("train.py", "-m", *own, *typed)
    assert result.returncode == 1
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--epochs=3",), "--epochs=3 is no option: a key is typed without dashes, epochs=3; "),
        (
            ("--optimizer.lr", "0.1"),
            "--optimizer.lr is no option: a key is typed without dashes, optimizer.lr=…; ",
        ),
        (("-m", "--seeds=1,2"), "--seeds=1,2 is no option: a key is typed without dashes, seeds=1,2; "),
    ],
)
def test_a_key_with_dashes(bantam: Bantam, typed: tuple[str, ...], said: str) -> None:
    result = bantam("train.py", *typed)
    assert result.returncode == 1
    assert result.stderr == f"Error: {said}python train.py --help lists them all\n"


@pytest.mark.parametrize("name", ["evaluate", "confirm", "export", "track"])
def test_what_may_be_left_out_is_not_said_to_be_missing(bantam: Bantam, name: str) -> None:
    said = bantam(f"{name}.py").stderr.splitlines()[-1]
    assert re.fullmatch(rf"{name}.py: error: the following arguments are required: \w+", said)


def test_a_range_without_a_search(bantam: Bantam) -> None:
    result = bantam("train.py", "-m", "optimizer.lr=interval(0.01,0.1)")
    assert result.returncode == 1
    assert "Error: a range is searched, not listed: add hparams_search=optuna" in result.stderr


def test_evaluate_says_it_too(bantam: Bantam) -> None:
    run = str(PROJECT / "docs" / "results" / "champion" / "0")
    for typed, said in (
        ("dta=mnist", "dta is no key of the run in"),
        ("data=mnst", "data=mnst does not exist: did you mean data=mnist?"),
        ("rot=x", "did you mean data.root?"),
    ):
        result = bantam("evaluate.py", run, typed)
        assert result.returncode == 1
        assert said in result.stderr
