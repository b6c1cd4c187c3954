"""Is a step of training faster than it was? Two checkouts take turns.

    git worktree add ../before main
    python benchmarks/turns.py ../before . experiment=champion

Each checkout trains in a process of its own that imports its own package; the two run by turns, so that other
work on the machine slows both. Printed are the medians and minima of a step's processor time, and their ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path


def work(folder: Path, steps: int, overrides: list[str]) -> None:
    """Train so many steps for every line that is read, and print the seconds of processor time of one."""
    from hydra import compose, initialize_config_dir

    from bantam import config
    from bantam.training.loop import train
    from bantam.training.setup import RunInfo, prepare

    config.register()
    with initialize_config_dir(str(folder / "conf")):
        cfg = compose("config", ["threads=1", *overrides])
    groups = ("model", "optimizer", "scheduler", "augmentation", "data")
    prepared = prepare(cfg, RunInfo(Path("none"), dict.fromkeys(groups, "that"), 1, None))
    data = prepared.data
    images = min(steps * cfg.batch_size, len(data.train_labels))
    few = replace(
        data,
        train_images=data.train_images[:images],
        train_labels=data.train_labels[:images],
        held_out_images=data.held_out_images[:1],
        held_out_labels=data.held_out_labels[:1],
    )
    training = replace(prepared.training, data=few, epochs=1, seed=1)
    list(train(training))
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        list(train(training))
        print((time.process_time() - start) / -(-images // cfg.batch_size), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=20, help="turns of each")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("overrides", nargs="*", help="overrides of the configuration")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.before, arguments.steps, arguments.overrides)
        return
    processes = []
    for folder in (arguments.before.resolve(), arguments.after.resolve()):
        command = [sys.executable, __file__, "--work", f"--steps={arguments.steps}", str(folder), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([*command, *arguments.overrides], env=environment, **pipes))  # type: ignore[call-overload]
    seconds: tuple[list[float], list[float]] = ([], [])
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for _ in range(arguments.turns):
        for process, measured in zip(processes, seconds, strict=True):
            process.stdin.write("go\n")
            process.stdin.flush()
            measured.append(float(process.stdout.readline()))
    for process in processes:
        process.communicate()
    for name, of in (("median", statistics.median), ("minimum", min)):
        before, after = (1000 * of(measured) for measured in seconds)
        print(f"{name}: {before:.2f} ms a step before, {after:.2f} after, {before / after:.2f} times as fast")


if __name__ == "__main__":
    main()
