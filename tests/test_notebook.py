"""The committed notebook is one run from top to bottom; CI executes it again."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "compare.ipynb"
LARGEST = 1_000_000  # bytes


@pytest.fixture(scope="module")
def cells():
    return [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def test_it_was_run_in_order_without_errors_or_warnings(cells):
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_it_shows_figures_and_names_no_machine(cells):
    shown = [o["data"] for cell in cells for o in cell["outputs"] if "data" in o]
    assert sum("image/png" in data for data in shown) >= 3
    assert NOTEBOOK.stat().st_size < LARGEST
    words = json.dumps(
        [
            [o.get("text"), o.get("data", {}).get("text/markdown")]
            for cell in cells
            for o in cell["outputs"]
        ]
    )
    for place in ("/home/", "/tmp/", "/work/", "site-packages", "Warning"):
        assert place not in words
