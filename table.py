"""Make the README's first table from finished runs: `python table.py <folder> … [--into README.md]`."""

import argparse
import shlex
import sys
from pathlib import Path

from bantam import errors


def main() -> None:
    """Exit with 0 where the table was made, with 1 where it cannot be."""
    errors.begin()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help="of a run or a multirun")
    parser.add_argument("--into", type=Path, help="a file: write the table between its marks, <!-- table -->")
    parser.add_argument(
        "--bytes", action="store_true", help="add bytes and accuracy in int8, after python export.py"
    )
    arguments = parser.parse_args()
    from bantam import markdown  # what was typed is answered at once, before PyTorch
    from bantam.report import folders, groups

    with errors.in_one_sentence():
        rows = markdown.table(groups.group(folders.gather(arguments.folders).runs), arguments.bytes)
        print(rows)
        if arguments.into:
            markdown.write_into(arguments.into, rows, shlex.join(["python", "table.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
