"""Load a finished run and score it again: `python evaluate.py <run folder> [data=fashion_mnist …]`."""

import argparse
from pathlib import Path

from bantam import config, errors, resolve
from bantam.search import sweeper
from bantam.training import saved

MAY_CHANGE = ("data", "device", "threads", "precision")


def main() -> None:
    """Exit with 0 where the recorded accuracy is repeated or the data are others, with 1 where not."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"change {', '.join(MAY_CHANGE)}"
    )
    arguments = parser.parse_args()
    config.register()
    sweeper.register()
    with errors.in_one_sentence():
        own = saved.load(arguments.folder)
        cfg = resolve.changed(own, arguments.overrides, MAY_CHANGE)
        from bantam.training.evaluate import evaluate
        from bantam.training.setup import RunInfo, prepare_finished

        same = evaluate(prepare_finished(cfg, RunInfo(arguments.folder, dict(own.choices), 1, None)))
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
