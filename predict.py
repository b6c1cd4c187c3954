"""Say what a finished run takes pictures for: `python predict.py <run folder> image.png …`."""

import argparse
from pathlib import Path


def main() -> None:
    """Print a line for each picture: class, probability and the second best. Exit with 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a finished run")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="picture", help="a file: PNG, JPEG, …")
    parser.add_argument("--invert", action="store_true", help="exchange black and white: for dark on bright")
    arguments = parser.parse_args()  # before anything is imported that takes time

    from bantam import errors

    errors.begin()
    with errors.in_one_sentence():
        from bantam.training import pixels, predict, terminal

        network = predict.load(arguments.folder)
        read = [pixels.read(file, network.shape, arguments.invert) for file in arguments.pictures]
        for picture in read:
            for sentence in picture.notes(network.mean.mean().item()):
                terminal.show_note(sentence)
        found = network.predict([picture.bytes_ for picture in read])
        wide = max(len(str(file)) for file in arguments.pictures)
        for file, row in zip(arguments.pictures, found.probabilities, strict=True):
            best = [f"{network.classes[i]} {100 * row[i]:5.1f} %" for i in row.argsort()[::-1][:2]]
            print(f"{file!s:{wide}}   {'   then '.join(best)}")


if __name__ == "__main__":
    main()
