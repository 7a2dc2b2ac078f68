"""`stage1 report`: what stands in the file, in a real browser, whoever wrote the texts in it."""

import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys

import stage1
from browser import chromium, console, script, show
from conftest import SMALL, Invoke, fitted, once, refused, settings_args, with_settings
from large_report import QUESTIONS, large_page
from pairs import pairs
from stage1.evaluation.conditions import NAMES
from stage1.progress import Progress
from stage1.reports.html.page import embedded
from stage1.reports.html.questions import Reading, collect, read_prompts
from stage1.reports.html.run import Facts, page
from stage1.runs.run import Run
from stage1.session import Session
from stage1.sweeps.grid import Axis, Cell, plan
from stage1.sweeps.sweep import Sweep
from trainings import results_of

SMALLEST = 1_500_000
"""Bytes of a report without its questions."""


@pytest.fixture(scope="session")
def runs(common: Path) -> tuple[Run, Run]:
    """The two runs of a sweep, which are asked the same questions."""

    def cells(folder: Path) -> tuple[list[Axis], list[Cell]]:
        axes = [Axis("compressor.ratio", [16, 4])]
        return axes, plan({}, [*SMALL, "train.steps=10", "train.check_every=5"], axes, [0], folder)

    folder = once(common / "reported", lambda made: Sweep(made, *cells(made)).run(Progress(), rows=NAMES))
    small, large = (cell.run for cell in cells(folder)[1])
    return small, large


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def one(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one run."""
    return stage1.report(runs[0].path, output=tmp_path_factory.mktemp("report") / "one.html")


def click(browser: Chrome, selector: str) -> None:
    script(browser, f"document.querySelector('{selector}').click()")


def choose(browser: Chrome, menu: str, value: str) -> None:
    change = "dispatchEvent(new Event('change'))"
    script(browser, f"const m = document.getElementById('{menu}'); m.value = '{value}'; m.{change}")


def column(browser: Chrome, number: int) -> list[str]:
    rows = "[...document.querySelectorAll('#answers tbody tr')]"
    return list(script(browser, f"return {rows}.map(r => r.cells[{number}].textContent)"))


def count(browser: Chrome) -> int:
    return int(script(browser, "return document.getElementById('count').textContent").split()[0])


def lines(browser: Chrome) -> list[str]:
    """The numbers of the questions that the page shows."""
    return column(browser, 0)


# -- one run ----------------------------------------------------------------------------------------------


def test_the_report_of_a_run_says_what_its_files_say(runs: tuple[Run, Run], one: Path) -> None:
    text, results = one.read_text(encoding="utf-8"), results_of(runs[0])
    assert results["verdict"]["text"].replace("'", "&#39;") in text
    for row in results["rows"]:
        assert f"{row['f1']:5.1f}  [{row['f1_ci95'][0]:.1f}, {row['f1_ci95'][1]:.1f}]" in text
    for said in ("Where F1 goes", "gzip of the text", "recon", "Learning rate", "embedding_table", "train: "):
        assert said in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    kept = {row: runs[0].read_answers(row) for row in data["rows"]}
    for row, answers, right in zip(data["rows"], data["answers"], data["right"], strict=True):
        assert answers == [answer.prediction for answer in kept[row]]
        assert right == "".join(str(int(answer.right)) for answer in kept[row])
    assert len(text) - len(json.dumps(data)) < SMALLEST


def test_prompts_stand_over_their_reconstruction(runs: tuple[Run, Run]) -> None:
    asked = collect(runs[0], ["text", "bottleneck"], Progress())
    assert asked.reading is not None
    pairs, results = asked.reading.pairs, results_of(runs[0])
    whole = [[pairs[number] for number in prompt] for prompt in asked.reading.prompts]
    for prompt, answer in zip(whole, asked.questions, strict=True):
        assert answer.question in "".join(own for own, _ in prompt)
    crossing = [read is None for prompt in whole for _, read in prompt[1:]]  # all but BOS
    assert np.mean(crossing) == pytest.approx(results["reconstruction"]["token_recovery"], abs=1e-9)
    passages = [0] * len(whole)  # as if all were about one: each shares what it can with the first
    data = asked.reading.data(passages)
    for (same, *rest), numbers in zip(data["rest"], asked.reading.prompts, strict=True):
        assert data["first"][0][:same] + rest == numbers


def test_a_prompt_is_read_back_as_its_bottleneck_works(session: Session) -> None:
    questions = session.data.test[:12]
    bottleneck = fitted(session, "compressor.ratio=16", "adapter=linear")
    by_token = read_prompts(bottleneck, session, questions)
    bottleneck.compressor.tokenwise = False
    assert read_prompts(bottleneck, session, questions) == by_token
    width = bottleneck.compressor.embed_dim
    shorter = read_prompts(pairs(width), session, questions)
    assert "changes the number of vectors" in shorter.note
    assert {read for _, read in shorter.pairs} == {None}
    assert [len(prompt) for prompt in shorter.prompts] == [len(prompt) for prompt in by_token.prompts]


def test_examples_in_front_cost_no_bits_of_the_gzipped_text_either(session: Session) -> None:
    questions = session.data.test[:12]
    bottleneck = fitted(session, "compressor.ratio=16", "adapter=linear")
    prompts = session.prompts(questions)
    plain = sum(8 * len(gzip.compress(p.text.encode())) for p in prompts) / sum(len(p.ids) for p in prompts)
    assert read_prompts(bottleneck, session, questions).gzip_bits == pytest.approx(plain)
    shots = read_prompts(bottleneck, with_settings(session, "prompt.shots=3"), questions)
    assert shots.gzip_bits == pytest.approx(plain, rel=0.15)


def test_the_curves_of_a_training_in_the_terminal(invoke: Invoke) -> None:
    losses = ("--loss", "recon=1", "--loss", "cosine=1")
    shown = invoke("train", "--no-eval", "--plot", "--quiet", *losses, *settings_args()).printed
    drawn = shown.partition("Loss and its terms in training")[2].partition("On the selection split")[0]
    assert {"recon", "cosine", "loss"} <= set(drawn.split())
    assert re.search("[\u2801-\u28ff]{10}", drawn)


def test_the_curves_of_several_trainings_in_the_terminal(runs: tuple[Run, Run], invoke: Invoke) -> None:
    shown = invoke("compare", *(str(run.path) for run in runs), "--force", "--plot").printed
    drawn = shown.partition("Selection score")[2]
    assert all(run.path.name in drawn for run in runs)
    assert re.search("[\u2801-\u28ff]{10}", drawn)


def test_a_report_without_the_model_keeps_the_answers(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "moved")))
    config = run.config
    model = config.model.model_copy(update={"name": "/home/me/gone"})
    data = config.data.model_copy(update={"name": "train=/home/me/a.json,test=/home/me/b.json"})
    run.write_config(config.model_copy(update={"model": model, "data": data}))
    took = {"seconds": 2.0, "shares": {f"Reading {run.config.data.name}": 0.5}}
    run.write_timings({"time": {"train": took}})
    text = stage1.report(run.path, output=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The prompts are not shown: " in text
    assert "/home" not in text, "a report is sent to others"
    assert "<td>data.train_from</td><td>a.json</td>" in text
    assert "<td>Reading b.json</td>" in text
    assert run.read_answers("text")[0].question in text


def test_a_run_that_was_only_trained(runs: tuple[Run, Run], tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / "trained")))
    (run.path / "results.json").unlink()
    text = stage1.report(run.path, output=tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not evaluated yet" in text
    assert "Learning rate" in text


# -- several ----------------------------------------------------------------------------------------------


def test_several_runs_side_by_side(runs: tuple[Run, Run], tmp_path: Path, browser: Chrome) -> None:
    output = stage1.report(*(run.path for run in runs), output=tmp_path / "two.html")
    before, after = (run.read_answers("bottleneck") for run in runs)
    won = sum(b.right and not a.right for a, b in zip(before, after, strict=True))
    lost = sum(a.right and not b.right for a, b in zip(before, after, strict=True))
    change = np.mean([b.f1 - a.f1 for a, b in zip(before, after, strict=True)])
    assert won > 0
    browser.get(output.as_uri())
    assert console(browser) == []
    row = "[...document.querySelectorAll('table')[1].rows[1].cells]"
    differences = script(browser, f"return {row}.map(c => c.textContent)")
    assert differences[0] == runs[1].path.name
    assert differences[1].strip().startswith(f"{change:.1f} ")
    assert differences[2:] == [str(lost), str(won)]
    legend = script(
        browser, "return [...document.querySelectorAll('#overview text')].map(t => t.textContent)"
    )
    assert {"bottleneck", "truncated (control)", "text", "no_context"} <= set(legend)
    closed = "return [...document.querySelectorAll('details.run')].map(d => d.open)"
    assert script(browser, closed) == [False, False]
    point = "document.querySelector('svg a[href=\"#run-1\"] circle')"
    script(browser, f"{point}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    assert script(browser, closed) == [True, False]
    choose(browser, "filter", "won")
    assert len(lines(browser)) == won


def test_a_sweep_shows_its_own_averages(runs: tuple[Run, Run], tmp_path: Path, browser: Chrome) -> None:
    folder = runs[0].path.parent
    output = stage1.report(folder, output=tmp_path / "sweep.html")
    browser.get(output.as_uri())
    assert console(browser) == []
    tables = "[...document.querySelectorAll('#overview table')]"
    shown = script(
        browser, f"return {tables}.map(t => [...t.rows].map(r => [...r.cells].map(c => c.textContent)))"
    )
    record = json.loads((folder / "sweep.json").read_text())
    assert len(shown) == 3
    for line, average in zip(shown[1][1:], record["averages"], strict=True):
        low, high = average["f1_ci95"]
        said = [f"{average['bits_per_token']:.1f}", f"{average['f1']:.1f} [{low:.1f}, {high:.1f}]"]
        assert [" ".join(cell.split()) for cell in line[2:4]] == said
    click(browser, "#overview th:nth-child(4) button")  # the bits, of which the second run has more
    bits = f"return {tables}[0].tBodies[0].rows[0].cells[3].textContent"
    fewest = script(browser, bits)
    click(browser, "#overview th:nth-child(4) button")
    assert float(script(browser, bits)) > float(fewest)


def test_places_that_are_no_runs(runs: tuple[Run, Run], tmp_path: Path, invoke: Invoke) -> None:
    for places, said in {
        (tmp_path,): "holds neither a run nor a sweep",
        (runs[0].path, tmp_path / "no"): "does not exist",
    }.items():
        refused(invoke("report", *map(str, places)), said)
    refused(invoke("report", str(runs[0].path), "--output", "no/report.html"), "no/report.html")
    assert not list(tmp_path.glob("*.html"))


# -- in the browser ---------------------------------------------------------------------------------------


def test_the_questions_are_sorted_filtered_searched_and_paged(
    runs: tuple[Run, Run], tmp_path: Path, browser: Chrome
) -> None:
    text = large_page(Facts.of(runs[0]), ["text", "raw", "linear", "bottleneck"])
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    show(browser, text, tmp_path / "large.html")
    assert script(browser, "return document.documentElement.dataset.ready") is not None
    assert console(browser) == []
    assert script(browser, "return performance.getEntriesByType('resource').length") == 0
    assert lines(browser) == [str(number) for number in range(1, 26)]
    click(browser, "#next")
    assert lines(browser)[0] == "26"
    choose(browser, "size", "100")
    assert len(lines(browser)) == 100
    click(browser, "#answers th[data-sort=number] button")
    click(browser, "#answers th[data-sort=number] button")
    assert lines(browser)[:2] == [str(QUESTIONS), str(QUESTIONS - 1)]
    click(browser, "#answers th[data-sort=change] button")
    change = [float(value) for value in column(browser, 6)]
    assert change == sorted(change)
    assert change[0] < 0
    choose(browser, "filter", "cut")
    assert count(browser) == QUESTIONS // 50 + 1
    ours, others = (data["right"][data["rows"].index(row)] for row in ("bottleneck", "text"))
    lost = sum(other > our for other, our in zip(others, ours, strict=True))
    won = sum(other < our for other, our in zip(others, ours, strict=True))
    wanted = {"wrong": ours.count("0"), "lost": lost, "won": won, "flipped": lost + won, "empty": 0}
    for kind, number in wanted.items():
        choose(browser, "filter", kind)
        assert count(browser) == number, kind
    choose(browser, "filter", "all")
    browser.find_element("id", "search").send_keys("ID-10569")
    assert lines(browser) == [str(QUESTIONS)]
    click(browser, "#answers tbody button")
    detail = script(browser, "return document.querySelector('.prompt').textContent")
    assert data["questions"][-1].removeprefix("What is ").removesuffix("?").split()[0] in detail
    assert script(browser, "return document.querySelectorAll('.prompt rt').length") > 0


def test_dark_light_and_print(one: Path, browser: Chrome) -> None:
    browser.get(one.as_uri())
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = script(browser, paper)
    picture = browser.get_screenshot_as_png()
    click(browser, "#theme")
    assert script(browser, paper) != light
    assert browser.get_screenshot_as_png() != picture
    assert len(picture) > 20_000, "a blank page is far smaller"
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 20_000
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.refresh()
    assert script(browser, paper) != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_by_keyboard(one: Path, browser: Chrome) -> None:
    browser.get(one.as_uri())
    focused = (
        "const e = document.activeElement; return e.closest('#answers') ? e.closest('th,td').tagName : e.id"
    )

    def tab_to(wanted: str) -> None:
        for _ in range(60):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            if script(browser, focused) == wanted:
                return
        raise AssertionError(f"the keyboard does not reach {wanted}")

    tab_to("filter")
    ActionChains(browser).send_keys("w").perform()
    assert script(browser, "return document.getElementById('filter').value") == "wrong"
    tab_to("TH")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert script(browser, "return document.activeElement.parentElement.ariaSort") == "ascending"
    tab_to("TD")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert script(browser, "return document.activeElement.ariaExpanded") == "true"


def test_without_scripts(runs: tuple[Run, Run], one: Path) -> None:
    with chromium(scripts=False) as browser:
        browser.get(one.as_uri())
        assert runs[0].read_answers("text")[0].question in browser.find_element("id", "answers").text
        assert browser.find_element("css selector", "svg").is_displayed()
        assert not browser.find_element("id", "controls").is_displayed()
        assert browser.find_element("tag name", "html").get_attribute("data-ready") is None


# -- what strangers wrote ---------------------------------------------------------------------------------

HOSTILE = (
    "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>",
    "\"' onmouseover=window.owned=1 x='",
    "]]><!--<svg/onload=window.owned=1>{{7*7}}{% raw %}",
    "\x1b[31mred\x1b]8;;http://evil\x07 \x00 \u202egnirts\u2066\u2028\u2029\u200b\ud800",
)


def hostile(place: str) -> str:
    return f"{place} {' '.join(HOSTILE)}"


def test_nothing_that_others_wrote_is_live(runs: tuple[Run, Run], tmp_path: Path, browser: Chrome) -> None:
    name = "<img src=x onerror=window.owned=1>\"'\u202e\x1b[31m"
    run = Run(Path(shutil.copytree(runs[0].path, tmp_path / name)))
    config, results = run.config, results_of(run)
    plain = hostile("text").replace("\ud800", "")  # files hold no lone surrogates
    model = config.model.model_copy(update={"name": plain.replace("\0", "")})
    run.write_config(config.model_copy(update={"model": model}))
    rows = {
        row["row"]: [
            answer._replace(id=plain, question=plain, gold=(plain,), prediction=plain)
            for answer in run.read_answers(row["row"])
        ]
        for row in results["rows"]
    }
    results["verdict"]["text"] = results["protocol"]["name"] = plain
    run.write_evaluation(results, rows)
    run.write_manifest({**run.read_manifest(), "plugins": {plain: {"name": plain}}})
    finding = {"severity": plain, "title": plain, "evidence": [plain], "remedy": plain, "command": plain}
    run.write_diagnosis(
        {"run": "x", "clean": True, "questions": 1, "findings": [{**finding, "explains": 1.0}]}
    )
    run.write_timings({"time": {plain: {"seconds": 1.0, "shares": {plain: 1.0}}}})
    metrics = [{"step": step, "loss": 1.0, "terms": {plain: {"value": 1.0}}} for step in (1, 2)]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    asked = collect(run, list(rows), Progress())
    size = len(asked.questions)
    reading = Reading([(hostile("own"), hostile("read"))], [[0]] * size, [1] * size, 1.0, hostile("note"))
    pages = {
        "one.html": page(Facts.of(run), asked._replace(reading=reading)),
        "two.html": stage1.report(run.path, run.path, output=tmp_path / "x.html").read_text(encoding="utf-8"),
    }
    for file, text in pages.items():
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u2028\u2029\u200b]", text)
        show(browser, text, tmp_path / file)
        script(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
        script(browser, "document.querySelectorAll('#answers tbody button').forEach(b => b.click())")
        assert script(browser, "return window.owned") is None
        live = "img, iframe, object, embed, link, base, [onerror], [onload], [onmouseover]"
        assert script(browser, f"return document.querySelectorAll('{live}').length") == 0
        assert script(browser, "return document.scripts.length") == 2
        assert console(browser) == []
        shown = script(browser, "return document.body.innerText")
        for part in HOSTILE[:3]:
            assert part in shown
        assert "\\u001b[31mred" in shown
        assert "\\u202egnirts" in shown


def test_json_in_a_page_cannot_end_its_element() -> None:
    value = {hostile("key"): [hostile("value"), 1.5, None]}
    text = str(embedded(value))
    assert "<" not in text
    assert ">" not in text
    assert text.isprintable()
    [(key, [first, *rest])] = json.loads(text).items()
    assert (key.split()[0], first.split()[0], rest) == ("key", "value", [1.5, None])
    assert "\\ud800" in first
