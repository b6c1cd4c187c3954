"""From ranges as Hydra's command line has them to Optuna's distributions; their ends, their points, their text."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bantam.overrides import unclosed, written

WHEN = " when "
"""What stands between a key and its condition in the name of a distribution, where a key has several."""


def name(key: str, when: Mapping[str, Any]) -> str:
    """What Optuna is told that a key is called which has another range under a condition."""
    return f"{key}{WHEN}{' '.join(f'{other}={written(value)}' for other, value in when.items())}"


def key_of(name: str) -> str:
    """The key in such a name."""
    return name.partition(WHEN)[0]


def by_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as Optuna has them, under their keys."""
    return {key_of(name): value for name, value in settings.items()}


def parse(line: str, loader: ConfigLoader) -> tuple[str, BaseDistribution | None]:
    """The key of an override, and its distribution where it has a range; None where it has one value.

    Raises ValueError, with the reason, for a range that cannot be searched as it is written.
    """
    try:
        override = OverridesParser.create(config_loader=loader).parse_override(line)
        override.config_loader = loader  # for glob(…)
        return override.get_key_element(), _distribution(override)
    except (HydraException, ValueError) as error:
        if missing := unclosed(line.partition("=")[2]):
            raise ValueError(f"{line} {missing}") from error
        raise ValueError(f"{line} cannot be searched: {' '.join(str(error).split())}") from error


def _distribution(override: Override) -> BaseDistribution | None:
    sweep = override._value  # `value()` would leave lists within a choice as the parser's own objects
    if isinstance(sweep, IntervalSweep):
        return _interval(sweep)
    if isinstance(sweep, RangeSweep):
        return _range(sweep)
    if isinstance(sweep, ChoiceSweep):
        _refuse_tags(sweep.tags, "choices have no scale")
        _refuse_shuffle(sweep.shuffle)
        return CategoricalDistribution([_choice(value) for value in sweep.list])
    if isinstance(sweep, Glob):
        return CategoricalDistribution(_matched(override))
    return None


def _matched(override: Override) -> list[Any]:
    """The options that a glob(…) chooses. Raises ValueError where there is none."""
    chosen = list(override.sweep_iterator())
    if not chosen:
        assert override.config_loader is not None
        options = override.config_loader.get_group_options(override.key_or_group)
        raise ValueError(f"it chooses no option: {override.key_or_group} has {', '.join(options) or 'none'}")
    return chosen


def _choice(value: Any) -> int | float | str:
    """A value as Optuna keeps it: a text is what stands after `key=`, so that it may be a list too."""
    if isinstance(value, QuotedString):
        value = value.text
    return value if isinstance(value, int | float) else written(Override._convert_value(value))


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    assert sweep.start is not None
    assert sweep.end is not None
    _refuse_tags(sweep.tags - {"log"}, "only log is known")
    log = "log" in sweep.tags
    if sweep.start > sweep.end:
        raise ValueError(f"{sweep.start} is above {sweep.end}: write the lower end first")
    _refuse_log(log, sweep.start)
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):
        return IntDistribution(sweep.start, sweep.end, log=log)
    return FloatDistribution(sweep.start, sweep.end, log=log)


def _range(sweep: RangeSweep) -> BaseDistribution:
    _refuse_tags(sweep.tags - {"log"}, "only log is known")
    _refuse_shuffle(sweep.shuffle)
    if sweep.step == 0:
        raise ValueError("its step is 0")
    plain = sweep.range()
    values: Sequence[Any] = plain if isinstance(plain, range) and not sweep.transformers else sorted(set(sweep))
    if not values:
        raise ValueError("it contains no value")
    low, high = sorted((values[0], values[-1]))
    step = abs(values[1] - values[0]) if len(values) > 1 else 1
    whole, log = isinstance(low, int) and isinstance(high, int), "log" in sweep.tags
    if log and not (whole and step == 1):
        raise ValueError("a logarithmic range has steps of 1 only: use tag(log, interval(…))")
    _refuse_log(log, low)
    if whole and (isinstance(values, range) or values == list(range(low, high + 1, step))):
        return IntDistribution(low, high, step=step, log=log)
    if not whole:
        steps = FloatDistribution(low, high, step=abs(float(sweep.step)))
        if _values(steps) == values:
            return steps
    # Steps that binary numbers do not have would end beside the values that were asked for.
    return CategoricalDistribution(values)


def _refuse_log(log: bool, low: float) -> None:
    if log and low <= 0:
        raise ValueError(f"a logarithmic scale begins above 0, not at {low}")


def _refuse_tags(tags: set[str], reason: str) -> None:
    if tags:
        raise ValueError(f"tag {sorted(tags)[0]} would be ignored: {reason}")


def _refuse_shuffle(shuffle: bool) -> None:
    if shuffle:
        raise ValueError("shuffle would be ignored: the sampler decides what is tried when; leave it out")


def value(choice: Any) -> Any:
    """A searched value as it stands in a configuration."""
    if not isinstance(choice, str):
        return choice
    return OverridesParser.create().parse_override(f"key={choice}").value()


def override(key: str, value: Any) -> str:
    """A searched value as an override."""
    return f"{key}={value if isinstance(value, str) else written(value)}"


def matching(value: Any, distribution: BaseDistribution) -> Any:
    """A value of the configuration as a distribution has it. Raises ValueError where it does not."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if _same(choice, _choice(plain)) or (isinstance(plain, str) and choice == plain):
                return choice
    elif isinstance(plain, int | float) and not isinstance(plain, bool):
        whole = isinstance(distribution, IntDistribution)
        if distribution._contains(plain) and (not whole or plain == int(plain)):
            return int(plain) if whole else float(plain)
    raise ValueError(f"{written(plain)} is not in {describe(distribution)}")


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where true is no 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def ends(distribution: BaseDistribution) -> tuple[Any, Any]:
    """The first and the last value of a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0], distribution.choices[-1]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def finite(space: dict[str, BaseDistribution]) -> bool:
    """Whether every key has steps, so that settings can come twice."""
    return not any(isinstance(values, FloatDistribution) and values.step is None for values in space.values())


def values(key: str, distribution: BaseDistribution) -> Sequence[Any]:
    """All values of a key's distribution, from the lowest up. Raises ValueError where it has no steps."""
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        raise ValueError(f"GridSampler only takes values in steps: search {key} with choice(…) or range(…)")
    return _values(distribution)


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    """All values of a distribution that has steps, from the lowest up."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
    return [float(low + i * step) for i in range(round((Decimal(str(distribution.high)) - low) / step) + 1)]


def describe(distribution: BaseDistribution) -> str:
    """A distribution in words."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    step = f" in steps of {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low:g} to {distribution.high:g}{step}{' (log)' * distribution.log}"
