"""Causes before any bottleneck: how the questions are put and the answers are cut."""

from collections.abc import Iterator

from stage1.diagnosis.facts import NOTABLE, Facts, Found

HOPELESS = 10.0
"""F1 of the bare model below which there is nothing to lose."""


def prompts(facts: Facts) -> Iterator[Found]:
    """How the questions are put."""
    protocol, n = facts.protocol, facts.protocol["n"]
    bos, cut, lost, chat = (protocol[name] for name in ("bos", "cut", "truncated", "chat_template"))
    if bos["expected"] and bos["missing"]:
        lack = f"{bos['missing']} of {n} prompts lack the token that the model was trained to begin with"
        gain, compared = _without(facts, "with BOS in front", bos["f1_text_with"], bos["f1_ours_with"])
        yield Found("no_bos", gain, [lack, compared])
    if cut["question_missing"] or cut["anchor_missing"]:
        lack = (
            f"{cut['question_missing']} of {n} prompts do not contain their question, "
            f"{cut['anchor_missing']} do not end in `Answer:`"
        )
        gain, compared = _without(facts, "with whole prompts", cut["f1_text_whole"], cut["f1_ours_whole"])
        yield Found("cut", gain, [lack, compared])
    if lost["prompts"]:
        told = f"{lost['prompts']} of {n} prompts lost {lost['tokens']} tokens at the end of their context"
        yield Found("truncated", 0.0, [told])
    if spaces := protocol["trailing_space"]:
        told = f"{spaces} of {n}: the answer's own space tokenizes differently then"
        yield Found("trailing_space", 0.0, [told])
    if chat["there"] and not chat["used"]:
        told = f"the tokenizer has a chat template; the text row's F1 without it is {facts.text:.1f}"
        yield Found("chat_template", 0.0, [told])


def answers(facts: Facts) -> Iterator[Found]:
    """What the bare model answers, and where its answers end."""
    n, differs, stop = (facts.protocol[name] for name in ("n", "raw_differs", "stop"))
    if facts.text < HOPELESS:
        told = f"F1 of the text row, the ceiling, is {facts.text:.1f}: no bottleneck can be judged by it"
        yield Found("no_ceiling", 0.0, [told])
    if differs:
        told = f"the raw row's answer differs from the text row's on {differs} of {n} questions"
        lost = max(abs(facts.text - facts.protocol["raw_f1"]), facts.text * differs / n)
        yield Found("raw_differs", lost, [told])
    if stop["run_on"]:
        told = f"{stop['run_on']} of {n} answers of the text row go on after the first newline"
        gain, compared = _without(facts, "cut there", stop["f1_text_first_line"], stop["f1_ours_first_line"])
        yield Found("no_stop", gain, [told, compared])
    elif stop["unstopped"] > 0.1 * n:
        told = f"{stop['unstopped']} of {n} answers of the text row reach the length limit without an end"
        yield Found("unstopped", 0.0, [told])
    # The bare model's own; `rules_bottleneck` has what the bottleneck adds to it.
    text = facts.measured["generation"]["text"]
    if text["points_in_form"] >= NOTABLE:
        told = f"{100 * text['contains_gold_but_wrong']:.0f} % of them contain a gold answer with F1 below 50"
        yield Found("format", text["points_in_form"], [told], {"whose": "The bare model's answers"})


def _without(facts: Facts, how: str, text: float, ours: float) -> tuple[float, str]:
    """What F1 without the fault brings back, to text row or bottleneck, and the evidence for it."""
    rows = f"text row {facts.text:.1f} → {text:.1f}, bottleneck {facts.ours:.1f} → {ours:.1f}"
    return max(text - facts.text, ours - facts.ours), f"{how}: {rows}"
