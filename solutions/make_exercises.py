"""Make the exercises from their solutions: cleared of the marked regions and of all outputs.

A region begins with `### BEGIN SOLUTION: what to do` and ends with `### END SOLUTION`; what to do is what the
stub says when it is run. Run `make exercises` after changing a solution; a test holds the two to each other.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

SOLUTIONS = Path(__file__).resolve().parent
EXERCISES = SOLUTIONS.parent / "exercises"
REGION = re.compile(r"^( *)### BEGIN SOLUTION: (.+)\n(?:.*\n)*? *### END SOLUTION$", re.MULTILINE)


def clear(solution: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The exercise that a solution answers. Raises ValueError for a marker without its partner."""
    exercise = nbformat.from_dict(solution)
    kernel = exercise.metadata.get("kernelspec", {})
    exercise.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    for cell in exercise.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.source = REGION.sub(r'\1raise NotImplementedError("\2")', cell.source)
            cell.outputs, cell.execution_count = [], None
        if " SOLUTION" in cell.source:
            raise ValueError(f"a solution region does not begin or end as it should in cell {cell.id}")
    return exercise


def main() -> None:
    """Write every exercise."""
    for path in sorted(SOLUTIONS.glob("*.ipynb")):
        nbformat.write(clear(nbformat.read(path, as_version=4)), EXERCISES / path.name)


if __name__ == "__main__":
    main()
