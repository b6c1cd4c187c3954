"""Train a study's best trials again on fresh seeds: `python confirm.py multirun/<study> [epochs=15] …`."""

import argparse
from pathlib import Path

from bantam import errors


def number(text: str) -> int:
    """The number of a trial, as it was typed."""
    try:
        return int(text)
    except ValueError:
        why = f"{text!r} is no number: give them with spaces and no commas between them, as in --trials 1 2"
        raise argparse.ArgumentTypeError(why) from None


def main() -> None:
    """Exit with 0 when the trials have been ranked and the winner judged, with 1 after an error."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="what all of them are to have instead; before --trials",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--top", type=int, default=3, help="how many of the best trials, 3 by default")
    which.add_argument(
        "--trials", type=number, nargs="+", default=(), metavar="number", help="instead: these trials"
    )
    which.add_argument("--front", action="store_true", help="instead: the Pareto front within the budget")
    parser.add_argument("--seeds", type=int, default=5, help="how many fresh seeds each, 5 by default")
    parser.add_argument("--validation-only", action="store_true", help="leave the test images alone")
    arguments = parser.parse_intermixed_args()
    from bantam import config  # what was typed is answered at once, before PyTorch is imported
    from bantam.report import page
    from bantam.search import confirm, sweeper

    config.register()
    sweeper.register()
    with errors.in_one_sentence():
        for key, least in (("top", 1), ("seeds", 2)):
            if getattr(arguments, key) < least:
                raise ValueError(f"--{key} is {getattr(arguments, key)}: it must be at least {least}")
        script = Path(__file__).with_name("train.py")
        confirm.confirm(
            arguments.study,
            arguments.top,
            arguments.seeds,
            script,
            arguments.trials,
            arguments.overrides,
            test=not arguments.validation_only,
            front=arguments.front,
        )
        page.at_end(arguments.study)


if __name__ == "__main__":
    main()
