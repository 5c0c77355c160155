"""The report of a conversion: what became of every key, and what had to be made."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPORT_FILE = "conversion.json"


@dataclass
class Report:
    """Every key of the source once: mapped or ignored with the reason; and every tensor that was not in it."""

    layout: str
    mapped: dict[str, str] = field(default_factory=dict)  # source → ours
    created: dict[str, str] = field(default_factory=dict)  # ours → how
    ignored: dict[str, str] = field(default_factory=dict)  # source → why
    config_ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        (folder / REPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def __str__(self) -> str:
        lines = [
            f"{self.layout}: {len(self.mapped)} tensors mapped, {len(self.created)} created, {len(self.ignored)} ignored"
        ]
        for verb, entries in (("created", self.created), ("ignored", self.ignored)):
            for reason, count in Counter(entries.values()).items():
                names = [name for name, why in entries.items() if why == reason]
                lines.append(f"  {verb} {names[0]}{f' and {count - 1} more' if count > 1 else ''}: {reason}")
        if self.config_ignored:
            lines.append(f"  of the configuration, without effect here: {', '.join(self.config_ignored)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])
