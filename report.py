"""Show what runs, multiruns and studies hold: `python report.py <folder> … [--output report.html]`."""

import argparse
from pathlib import Path

from bantam import errors


def main() -> None:
    """Exit with 0 where the page was written, with 1 where a folder does not exist."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help="of a run, a multirun or a study")
    parser.add_argument("--output", type=Path, help="the page; by default report.html in the one folder, or here")
    arguments = parser.parse_args()
    from bantam.report import page, terminal  # what was typed is answered at once, before PyTorch is imported

    with errors.in_one_sentence():
        found = page.read(arguments.folders)
        path = page.save(found, arguments.folders, arguments.output)
        terminal.show(found)
        print(f"\nLook at it: {path}")


if __name__ == "__main__":
    main()
