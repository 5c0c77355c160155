"""A row that cannot be learned from, said in one line: file, row id, field, what was expected and what was found.

The same object is what `vwlmm data check` prints and what stops a training run.
"""

from typing import Any

HINT = "run `vwlmm data check` on the file to list every such row"


class BadRow(ValueError):
    """One bad row. Readers yield it, so that a check can go on; training raises it.

    Args:
        source: file name and row or line, as in `train.json row 17` (rows count from 0, lines from 1).
        row_id: the row's own `id`, or its number where it has none.
        field: the field that is wrong, as in `image` or `conversations[1].from`.
        expected: what would have been right.
        found: what is there.
    """

    # The defaults are for torch's DataLoader, which rebuilds a worker's error from its message alone.
    def __init__(self, source: str, row_id: str = "", field: str = "", expected: str = "", found: str = "") -> None:
        super().__init__(source, row_id, field, expected, found)
        self.source = source
        self.row_id = row_id
        self.field = field
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        if self.field:
            return f"{self.summary}; {HINT}"
        # From a DataLoader worker the message comes at the end of its traceback.
        return self.source.rpartition("BadRow: ")[2].strip()

    @property
    def summary(self) -> str:
        """The message without the advice to run the check: for lists of bad rows."""
        return f"{self.source} (id {self.row_id}), field '{self.field}': expected {self.expected}, found {self.found}"

    def to_dict(self) -> dict[str, Any]:
        """The five fields as plain data, for JSON."""
        names = ("source", "row_id", "field", "expected", "found")
        return {name: getattr(self, name) for name in names}
