"""Write a finished run's network as ONNX, in float32 and in int8: `python export.py <run folder>`."""

import argparse
from pathlib import Path

from bantam import config, errors, resolve
from bantam.search import sweeper
from bantam.training import saved

MAY_CHANGE = ("data.root", "device", "threads")


def main() -> None:
    """Exit with 0 where the files were written, with 1 where the network in ONNX predicts otherwise."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished run")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"change {', '.join(MAY_CHANGE)}"
    )
    arguments = parser.parse_intermixed_args()
    config.register()
    sweeper.register()
    with errors.in_one_sentence():
        own = saved.load(arguments.folder)
        cfg = resolve.changed(own, arguments.overrides, MAY_CHANGE)
        cfg.kernels, cfg.compile, cfg.precision = "torch", False, "float32"
        from bantam.export import run
        from bantam.training.setup import RunInfo, prepare_finished

        run.check_extra()
        answer = run.export(prepare_finished(cfg, RunInfo(arguments.folder, dict(own.choices), 1, None)))
        print(run.in_words(answer, arguments.folder))


if __name__ == "__main__":
    main()
