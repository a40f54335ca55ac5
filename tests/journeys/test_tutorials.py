"""The tutorials run from their first cell to their last, offline, and are kept without what they printed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.ipynb"))
# Of one cell; each notebook takes about a minute on one thread.
TIMEOUT = 900


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == list("12345")
    index = (NOTEBOOKS[0].parent / "index.md").read_text(encoding="utf-8")
    assert all(f"]({path.name})" in index for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_installs_on_colab_first(path):
    code = cells(path, "code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    first = "".join(code[0]["source"])
    assert 'if "google.colab" in sys.modules:' in first
    assert '%pip install -q "sae-lens-afa[fast]"' in first
    assert "".join(cells(path, "markdown")[0]["source"]).startswith(f"# {path.name[0]}. ")


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> str:
    """A kernel of this very interpreter, whatever kernels its user has installed."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tests", "language": "python",
    }  # fmt: skip
    folder = tmp_path / "jupyter" / "kernels" / "tests"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    return "tests"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, kernel, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    work = tmp_path / "work"
    work.mkdir()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name=kernel, resources={"metadata": {"path": str(work)}}
    ).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    if path.name[0] in "124":  # those with a plot
        assert any("image/png" in output.get("data", {}) for output in shown)
