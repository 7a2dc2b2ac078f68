"""How fast a report of 10,570 questions is in a browser, and how large it is.

python benchmarks/report.py RUN     # an evaluated run, whose results frame the invented questions

Printed as JSON are medians of five, in milliseconds by the page's clock; `interactive` is from the start of
the navigation until everything answers, the others are until the page is laid out again.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from stage1.reports.html.run import Facts
from stage1.runs.run import Run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from browser import chromium, script, show
from large_report import QUESTIONS, large_page

CHANGED = "dispatchEvent(new Event('change'))"
ACTIONS = {
    "sort": "document.querySelectorAll('#answers th button')[1].click()",
    "search": "const i = document.getElementById('search'); i.value = 'w1' + n; i.dispatchEvent(new Event('input'))",  # noqa: E501
    "filter": f"const m = document.getElementById('filter'); m.value = n % 2 ? 'won' : 'lost'; m.{CHANGED}",
    "page": "document.getElementById('next').click()",
}
TOOK = "return performance.now() - begun"
TIMES = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    facts = Facts.of(Run.open(parser.parse_args().run))
    text = large_page(facts, list(facts.row))
    found: dict[str, float] = {"questions": QUESTIONS, "megabytes": len(text.encode()) / 1e6}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        ready = []
        for _ in range(TIMES):
            show(browser, text, Path(folder, "report.html"))
            ready.append(float(script(browser, "return document.documentElement.dataset.ready")))
        found["interactive"] = statistics.median(ready)
        for name, action in ACTIONS.items():
            timed = f"const begun = performance.now(); {action}; document.body.offsetHeight; {TOOK}"
            took = [float(script(browser, f"const n = {n}; {timed}")) for n in range(TIMES)]
            found[name] = statistics.median(took)
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
