"""What somebody meant who typed an option or a key that does not exist, or what Hydra cannot read."""

import difflib
import json
import os
import re
import shlex
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bantam import overrides
from bantam.nearest import LEAST, nearest
from bantam.overrides import CLOSING, FUNCTION, unclosed, with_commas
from bantam.own import code

ALL = "python train.py --help lists them all"

NO_OPTION = (
    "Config group override must be a string or a list",
    "argument of type 'int' is not",
    "argument of type 'NoneType' is not",
)
"""How Hydra's errors begin where null or a number is the option of a group, or one of a list."""


def suggestion(error: BaseException) -> ValueError | None:
    """One sentence with what is nearest to what was typed; None where the error is about something else."""
    if isinstance(error, SearchPathException) or str(error).startswith("Primary config directory"):
        return _about_folder(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _about_option(error)
    if isinstance(error, OverrideParseException):
        return _about_grammar(str(error.override), str(error))
    if isinstance(error, ConfigCompositionException):
        if re.match(r"model=.+ cannot be used: ", str(error)):  # code of one's own
            return ValueError(str(error))
        if sweep := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", str(error)):
            return _about_sweep(sweep[1])
        return _about_parent(error) or _about_several(error) or _about_key(error)
    if str(error).startswith(NO_OPTION):
        return _about_choice(error)
    if isinstance(error, HydraException) and str(error).startswith("BasicSweeper does not support"):
        own = "hydra/sweeper=bantam hydra.sweep.dir=multirun/mine"
        return ValueError(f"a range is searched, not listed: add hparams_search=optuna, or {own}, or give a list")
    return _about_value(error) if isinstance(error, OmegaConfBaseException) else None


def _about_grammar(word: str, message: str) -> ValueError | None:
    """How to write what Hydra cannot read, such as data.root=~/my.npz; `message` is what Hydra says."""
    key, equals, value = word.partition("=")
    line = overrides.split_by_spaces(word, overrides.typed())
    if not equals or re.search(r"\s", key) or re.search(r"\s[\w./@~+]+=", value):
        values = f"; values have commas and no spaces between them, as in {_as_typed(line)}" if line else ""
        return ValueError(
            f"{word!r} is no override: give each by itself, as key=value without spaces around the ={values}"
        )
    if line:
        return _about_spaces(word, line)
    if value.startswith("="):
        return ValueError(f"{word} has two =: write {shlex.join([key + '=' + value.lstrip('=')])}")
    if missing := unclosed(value):
        return ValueError(f"{word} {missing}")
    # Otherwise it is text, such as net(1).py:Net.
    if FUNCTION.match(value) and value.endswith((*CLOSING.values(),)):
        said = [line for line in message.splitlines() if not line.startswith(("Error ", "See "))]
        ranges = "ranges are written as interval(0.01,0.1), range(8,21) and choice(a,b), lists as [1,2]"
        return ValueError(f"{word} cannot be read ({'; '.join(said)}): {ranges}, and text in quotes")
    quoted = QuotedString(value.strip().strip("'\""), Quote.double).with_quotes()
    return ValueError(
        f"{word} has letters that Hydra takes only in quotes: write {shlex.join([f'{key}={quoted}'])}"
    )


def _as_typed(line: str) -> str:
    """An override as it is typed, with -m where it stands for several runs and that is missing."""
    value = line.partition("=")[2]
    multirun = overrides.from_python.get() is not None or {"-m", "--multirun"} & {*overrides.typed()}
    return ("" if multirun or FUNCTION.match(value) else "-m ") + shlex.join([line])


def _about_spaces(word: str, line: str) -> ValueError:
    """What to say of spaces between values; `line` has commas there."""
    return several(line) or ValueError(
        f"{word}: values have commas and no spaces between them, so write {_as_typed(line)}"
    )


def _about_value(error: OmegaConfBaseException) -> ValueError:
    """What OmegaConf says of a value in several lines, in one, after the key that it is about."""
    key = f"{error.full_key}: " if error.full_key else ""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if unset := re.search(r"Environment variable '(.+)' not found", text):
        name = unset[1]
        text = f"the environment variable {name} is not set, which ${{oc.env:{name}}} takes: set it"
    return ValueError(f"{key}{text}")


def _about_folder(error: BaseException) -> ValueError | None:
    """What to say of a folder of options that is none, such as that of --config-dir."""
    found = re.search(r"'(.*)' (not found|exists)", str(error), re.DOTALL)
    if found is None:
        return None
    folder, option = Path(found[1]), "--config-dir" if found[2] == "not found" else "--config-path"
    if option == "--config-path":
        return ValueError(f"{option}: {folder} is no folder; options of your own are found with --config-dir")
    there = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, there, n=1, cutoff=LEAST)
    what = "is no folder" if os.path.lexists(folder) else "does not exist"
    if near:
        name = os.path.relpath(folder.with_name(near[0]))
        return ValueError(f"{option}: {folder} {what}: did you mean {shlex.join([option, name])}?")
    return ValueError(f"{option}: {folder} {what}: give one with options, such as {folder}/model/mine.yaml")


def _about_parent(error: BaseException) -> ValueError | None:
    """The absolute path of a file that is chosen with .. in its path, as in model=../mine.py:Net."""
    found = re.search(r"Parent traversal .* is not supported \('(.+)'\)", str(error))
    if found is None:
        return None
    file, _, name = found[1].rpartition(":")
    if not file.endswith(".py"):
        return ValueError(f"{found[1]} has .., which no option can have: see python train.py --help")
    option = f"{os.path.abspath(file)}:{name}"
    if not re.fullmatch(r"[\w./:-]+", option, re.ASCII):
        option = QuotedString(option, Quote.double).with_quotes()
    option = shlex.join([f"model={option}"])
    return ValueError(f"model={found[1]} has .., which Hydra takes in no option: write {option}")


def _about_option(error: MissingConfigException) -> ValueError | None:
    """The nearest option of a group, such as model=v2 for model=v3."""
    group, _, typed = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return ValueError(f"--config-name {typed} does not exist: leave it out, as Bantam has one configuration")
    if gone := _about_experiment(group, typed):
        return gone
    there = sorted(error.options or _options(group))
    if not there:
        return None
    options = with_commas(typed)
    if options.split(",")[0] in there and options != typed:
        line = f"{group}=[{options}]" if group == "tracker" else f"{group}={options}"
        return _about_spaces(f"{group}={typed}", line)
    near = difflib.get_close_matches(typed.lower(), there, n=1, cutoff=0.5)
    meant = f"did you mean {group}={near[0]}? There are" if near else "there are"
    own = ", or a class in a file of your own, as in model=mine.py:Net" if group == "model" else ""
    if own and typed.endswith(".py"):
        return ValueError(f"{group}={typed} names no class: write {group}={typed}:Net, where Net is the class")
    return ValueError(f"{group}={typed} does not exist: {meant} {', '.join(there)}{own}")


def _about_experiment(group: str, typed: str) -> ValueError | None:
    """What to say of an experiment that the search in a --config-dir has written; None for others."""
    there = GlobalHydra.instance()
    for source in there.config_loader().get_sources() if there.is_initialized() else ():
        study, file = Path(source.path), Path(source.path, group, f"{typed}.yaml")
        written = _experiments(study) if group == "experiment" else {}
        if typed not in written:
            continue
        shown = os.path.relpath(file)
        if os.path.lexists(file):
            return ValueError(f"{shown} is no file: move it away, and {SEARCH_AGAIN}")
        number = written[typed]
        if number is not None and not (study / str(number)).is_dir():
            trial = os.path.relpath(study / str(number))
            return ValueError(
                f"{shown} is gone, and so is {trial}, the trial that it repeats: restore one of them"
            )
        return ValueError(f"{shown} is gone: restore it, or {SEARCH_AGAIN}")
    return None


OF_SEARCH = ("trials.csv", "summary.json")
"""Files of which a search has at least one in its folder."""

SEARCH_AGAIN = "type the command line of the search again, which writes it anew"
"""What helps where a file is damaged that a search writes at its end."""


def _experiments(study: Path) -> dict[str, int | None]:
    """The experiments that a search has written, and the trial that each repeats; none where it is no search."""
    if not any((study / name).exists() for name in OF_SEARCH):
        return {}
    try:
        summary = json.loads((study / "summary.json").read_text(encoding="utf-8"))
        if "front" in summary:
            return {f"trial_{entry['number']}": entry["number"] for entry in summary["front"]}
        return {"best": summary["best"]["number"]}
    except (OSError, ValueError, KeyError, TypeError):  # it is damaged, or the search goes on
        return {"best": None}


def several(line: str) -> ValueError | None:
    """The sentence for several options of a group that has one, such as model=[v1,v2]; None for others."""
    group, _, value = line.partition("=")
    if group not in ONE_OPTION or not value.startswith("["):
        return None
    options = ",".join(option.strip() for option in value.strip("[] ").split(","))
    return ValueError(
        f"{line} chooses several options of one group: choose one, or compare them, -m {group}={options}"
    )


ONE_OPTION = ("model", "optimizer", "scheduler", "augmentation", "data")
"""Groups whose options are one thing each: Hydra would mix their keys."""


def _about_sweep(line: str) -> ValueError:
    """How to write several values, which without -m are a list or nothing."""
    key, _, value = line.partition("=")
    as_list = "" if key in ONE_OPTION or "(" in value else f"; a list, where the key takes one, is {key}=[{value}]"
    return ValueError(f"{line} stands for several runs: add -m{as_list}")


def _about_several(error: BaseException) -> ValueError | None:
    """As `several`, where Hydra has tried to mix them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        typed = frame.f_locals.get("overrides")
        for line in typed if isinstance(typed, list) else ():
            if isinstance(line, str) and (about := several(line)):
                return about
    return None


def _about_choice(error: BaseException) -> ValueError | None:
    """The options of a group for which null or a number was typed, alone or in a list."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for item in frame.f_locals.get("overrides_list") or ():
            chosen = item.value() if isinstance(item, Override) else ""
            if all(isinstance(one, str) for one in (chosen if isinstance(chosen, list) else [chosen])):
                continue
            if there := _options(str(item.key_or_group)):
                return ValueError(f"{item.input_line} chooses nothing: there are {', '.join(there)}")
    return None


NO_NUMBERS = re.compile(r" of type '\w+' is incompatible with type hint '.*list\[.*'")
"""What OmegaConf says of data.mean=grey: what may stand there, as Python writes it."""


def _about_key(error: ConfigCompositionException) -> ValueError | None:
    """The nearest key or group, such as optimizer.lr for lr; a key of a group that was given a value itself."""
    found = _override(error)
    if found is None:
        return None
    key, line, cfg = found
    value = line.partition("=")[2]
    if line.startswith("+") and str(error).startswith("Could not append"):
        return ValueError(f"{line} adds a key that is there already: write {shlex.join([line.lstrip('+')])}")
    if line.startswith("~") and str(error).startswith("Error merging override"):
        return ValueError(f"{line} is refused: a key of a run cannot be taken away; give it a value")
    node = OmegaConf.select(cfg, key, throw_on_missing=False, throw_on_resolution_failure=False)
    if isinstance(node, DictConfig):
        inner = ", ".join(_within(node, key))
        return ValueError(f"{line} gives one value to a group of keys: choose from {inner}")
    if isinstance(node, ListConfig) and not value.startswith("["):
        return ValueError(f"{line} is refused: {key} is a list, so write {shlex.join([f'{key}=[{value}]'])}")
    if error.__cause__ is not None and str(error).startswith("Error merging override"):
        said = str(error.__cause__).splitlines()[0]
        said = NO_NUMBERS.sub(" is neither a number nor a list of them", said)
        commas = with_commas(re.sub("['\"]", "", line))
        numbers = isinstance(node, int | float)
        fit = not numbers or re.fullmatch(r"[-+.,\deE\[\]]+", commas.partition("=")[2])
        if commas.count(",") > line.count(",") and fit:
            said += f"; where several values are meant, write {_as_typed(commas)}"
        return ValueError(f"{line} is refused: {said}")
    if node is not None or not str(error).startswith("Could not override"):
        return None
    group, _, rest = key.partition(".")
    option = rest.partition(".")[0]
    if having := _having(group, option, cfg.get(group) or {}):
        which = "which is not chosen: add" if len(having) == 1 else "of which none is chosen: choose one, as"
        return ValueError(f"{key} is a key of {group}={', '.join(having)}, {which} {group}={having[-1]}")
    if group == "model" and (own := code.about_argument(cfg.get(group), option, value)):
        return ValueError(f"{key} is no key: {own}")
    near = nearest(key, [*keys(cfg, hydra=key.startswith("hydra")), *_groups()])
    parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else None
    there = _within(parent, key.rpartition(".")[0]) if isinstance(parent, DictConfig) else []
    meant = f"did you mean {near}={value}? " if near else f"there are {', '.join(there)}. " if there else ""
    adds = f"+{line} would add it; " if key.startswith("hydra.") else ""
    return ValueError(f"{key} is no key: {meant}{adds}{ALL}")


def _having(group: str, key: str, chosen: Any) -> list[str]:
    """The options of a group, but those that are chosen, that have a key; a tracker is the key of its own keys."""
    options = _options(group)
    if group == "tracker":
        return [key] if key in options and key not in chosen else []
    loader: Any = GlobalHydra.instance().config_loader() if group in ONE_OPTION and options else None
    read = {option: loader.repository.load_config(f"{group}/{option}") for option in options if loader}
    return [option for option, found in read.items() if found is not None and key in found.config]


def _within(node: DictConfig, name: str) -> list[str]:
    return [f"{name}.{key}" for key in map(str, node) if not key.startswith("_")]


def keys(node: Any, hydra: bool = False, within: str = "") -> Iterator[str]:
    """All keys of a configuration that have a value; Hydra's own only where they are wanted."""
    for name in node:
        if within == "" and (name == "hydra") != hydra:
            continue
        inner = None if OmegaConf.is_missing(node, name) else node._get_node(name)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_interpolation():
            yield from keys(inner, hydra, f"{within}{name}.")
        elif not str(name).startswith("_"):
            yield f"{within}{name}"


def _override(error: BaseException) -> tuple[str, str, DictConfig] | None:
    """The key, the text and the configuration of the override at which Hydra was: its message lacks the last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        item, cfg = frame.f_locals.get("override"), frame.f_locals.get("cfg")
        if frame.f_code.co_name == "_apply_overrides_to_config" and isinstance(cfg, DictConfig) and item:
            return str(item.key_or_group), str(item.input_line), cfg
    return None


def _groups() -> list[str]:
    """The groups that can be chosen from; none when the command has ended."""
    return _options("", ObjectType.GROUP)


def _options(group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    """The options of a group; none when the command has ended."""
    there = GlobalHydra.instance()
    return there.config_loader().get_group_options(group, kind) if there.is_initialized() else []
