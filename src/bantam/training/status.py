"""A line at least every half minute while something goes on, for whoever sees no bar: in a file or a notebook."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import TracebackType
from typing import Any

SECONDS = 25.0
"""After which a line is written where none was: with all that may delay it, half a minute does not pass."""

LOOK_SECONDS = 1.0

IN_PLACE_SECONDS = 0.5
"""Between two changes of the line in a notebook."""


class Line:
    """What goes on, in one line: written where nothing was for a while, and in a notebook changed in place."""

    def __init__(
        self,
        write: Callable[[str], object],
        text: str,
        in_place: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write` adds a line to the output, `in_place` changes one that stays."""
        self._write, self.text, self._in_place, self._clock = write, text, in_place, clock
        self._written = self._shown = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def update(self, text: str) -> None:
        """Say what goes on now."""
        self.text = text
        now = self._clock()
        if self._in_place and now - self._shown >= IN_PLACE_SECONDS:
            self._shown = now
            self._in_place(text)

    def was_written(self) -> None:
        """Note that the output has another line."""
        self._written = self._clock()

    def look(self) -> None:
        """Write the line where nothing was written for long."""
        if self._clock() - self._written >= SECONDS:
            self.was_written()
            with suppress(OSError, ValueError):  # nobody reads on: the training will notice
                self._write(self.text)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def __enter__(self) -> "Line":
        """Begin to look at the clock."""
        if self._in_place:
            self._in_place(self.text)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Stop, and empty the line that was changed in place."""
        self._ended.set()
        self._thread.join()
        if self._in_place:
            self._in_place("")


def in_notebook() -> Callable[[str], object]:
    """A line below a cell: what is called with a text changes it."""
    display = import_module("IPython.display").display  # whoever is in a notebook has it

    def data(text: str) -> dict[str, Any]:
        return {"text/plain": text}

    handle = display(data(""), raw=True, display_id=True)
    return lambda text: handle.update(data(text), raw=True)
