"""A run as code looks at it: all that it knows is in its folder."""

import os
from dataclasses import asdict, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from bantam.training import folder as files
from bantam.training import predict, saved
from bantam.training.loop import Epoch

if TYPE_CHECKING:
    from pandas import DataFrame


class Run:
    """A run: `Run(folder)`. What it has not reached yet is None, or raises ValueError with the reason."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """`folder` is that of one run, with a `.hydra` in it; raises ValueError where it is not."""
        self.folder = Path(folder).absolute()
        self._saved = saved.load(self.folder)

    @property
    def result(self) -> dict[str, Any]:
        """All that is in `result.json`."""
        return files.read_result(self.folder)

    @property
    def verdict(self) -> str:
        """One of met, not met, not judged, diverged, pruned, refused, failed."""
        return str(self.result["verdict"])

    @property
    def reason(self) -> str:
        """The evidence for the verdict, in a sentence."""
        return str(self.result["reason"])

    @property
    def objective(self) -> float | None:
        """Mean accuracy of the last epochs in percent."""
        return self.result.get("objective")

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the last epoch in percent: that of the weights which were saved."""
        last: list[float] = self.result.get("last_accuracies") or []
        return last[-1] if last else None

    @property
    def history(self) -> "DataFrame":
        """A row an epoch, with the columns of `history.csv`; none where no epoch has ended."""
        from pandas import DataFrame

        epochs = files.read_history(self.folder) if (self.folder / files.HISTORY).exists() else []
        return DataFrame([asdict(epoch) for epoch in epochs], columns=[field.name for field in fields(Epoch)])

    @property
    def config(self) -> DictConfig:
        """The configuration, with its types."""
        return self._saved.checked

    def load(self) -> predict.Network:
        """The network, in evaluation mode, with the weights that were saved."""
        return predict.load(self.folder)

    def __fspath__(self) -> str:
        """Its folder, for whatever takes a path."""
        return str(self.folder)

    def _in_words(self) -> str:
        """Its verdict and its accuracy, as far as it has any."""
        if not (self.folder / files.RESULT).exists():
            return "not finished"
        result = self.result
        name = result.get("experiment") or result.get("model")
        reached = "" if self.objective is None else f", {self.objective:.2f} % in the last epochs"
        return f"{name}, seed {result.get('seed')}: {result['verdict']}{reached}"

    def __repr__(self) -> str:
        """What it is, how it ended and where it is."""
        return f"Run({str(self.folder)!r}: {self._in_words()})"

    def _repr_html_(self) -> str:
        """The same above the history, for a notebook."""
        table = self.history.to_html(index=False, na_rep="", float_format="{:.4g}".format)
        return f"<p><b>{escape(self._in_words())}</b><br><code>{escape(str(self.folder))}</code></p>{table}"
