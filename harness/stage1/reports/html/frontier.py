"""The report of a search for the frontier."""

from pathlib import Path

from stage1.files import read_record
from stage1.reports import figures
from stage1.reports.frontier import MARKS, Frontier, cells, heads, summary
from stage1.reports.html.page import number, render
from stage1.reports.html.run import markup


def frontier_page(folder: Path) -> str:
    """What `stage1 frontier` found in `folder`: its sentences, its curve and every setting.

    Raises:
        UsageError: its record is damaged.
    """
    read = read_record(folder / "frontier.json", "Make it again with the same `stage1 frontier` command.")
    record = Frontier.model_validate(read)
    return render(
        "frontier.html.jinja",
        {
            "title": folder.resolve().name,
            "sentences": list(summary(record)),
            "figure": markup(figures.frontier(record)),
            "header": heads(record, detailed=True),
            "lines": [cells(record, point, detailed=True) for point in record.points],
            "marks": [(MARKS[name], number(bits)) for name, bits in record.marks.items()],
        },
    )
