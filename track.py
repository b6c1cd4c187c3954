"""Show finished runs in a tracker afterwards: `python track.py multirun/<study> tracker=mlflow`."""

import argparse
import re
from pathlib import Path

from hydra import compose, initialize_config_dir

from bantam import config, errors, ranges, resolve
from bantam.overrides import command_line
from bantam.search import sweeper
from bantam.tracker_keys import TRACKERS


def main() -> None:
    """Exit with 0 where the trackers know all that has ended in the folders, with 1 where they do not."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="folder", help="of a run, a multirun or a study")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="tracker=option", help="which tracker, and its keys"
    )
    words = parser.parse_args().folders
    overrides = [word for word in words if re.match(r"tracker[\w.]*=", word)]
    paths = [Path(word) for word in words if word not in overrides]
    config.register()
    sweeper.register()
    with errors.in_one_sentence():
        if more := [str(path) for path in paths if str(path) in TRACKERS and not path.exists()]:
            typed = [word.partition("=")[2].strip(",") for word in overrides if word.startswith("tracker=")]
            several = command_line([f"tracker=[{','.join([*typed, *more])}]"])
            raise ValueError(f"{more[0]} is no folder: several trackers are typed as a list, {several}")
        with initialize_config_dir(str(resolve.project() / "conf")):
            cfg = compose("config", overrides)
        ranges.validate(cfg)
        resolve.pin(cfg, Path.cwd())
        if not cfg.tracker:
            raise ValueError("no tracker is given: add tracker=tensorboard, tracker=mlflow or tracker=wandb")
        from bantam import tracking
        from bantam.training import saved
        from bantam.training.build import build_trackers

        sent, failed = tracking.send(paths, build_trackers(cfg), saved.tracker_overrides(cfg))
        print(f"{sent} sent, {failed} not sent" if failed else f"{sent} sent")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
