"""The notebook of the documentation, from its first cell to its last, as in Jupyter."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install -e '.[dev]'")
pytest.importorskip("ipykernel", reason="needs ipykernel: pip install -e '.[dev]'")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = PROJECT / "docs" / "notebook.ipynb"


def texts(cell: Any) -> str:
    """All that is below a cell, as text."""
    found = []
    for output in cell.outputs:
        found.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(found)


@pytest.mark.whole
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own
        client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    trained, verdict, drawn, dry, mistake, _, own, predicted, searched, listed, best = map(texts, code)
    assert "epoch  3/3" in trained
    assert "ipywidgets" not in trained
    assert "conv 3×3" in trained
    assert "Run('" in trained
    assert "not judged" in verdict
    assert "Figure" in drawn
    assert "none: dry_run" in dry
    assert "model=v2 has 10,897 parameters, 898 over the 9,999 that" in mistake
    assert "test_accuracy" in own
    assert "% of all 5,000 images" in predicted
    assert "trial   1 complete" in searched
    assert "\x1b" not in searched  # it is no terminal
    assert "COMPLETE" in listed
    assert "optimizer.lr" in best
    assert {path.name for path in tmp_path.iterdir()} >= {"outputs", "multirun", "mine.py"}


def test_the_notebook_is_kept_without_what_it_printed() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
