"""Causes before any bottleneck: how the questions are put and the answers are cut."""

from collections.abc import Iterator

from stage1.diagnosis.facts import NOTABLE, Facts, Finding, make, points

HOPELESS = 10.0
"""F1 of the bare model below which there is nothing to lose."""


def _raw_differs(facts: Facts, run: str) -> Iterator[Finding]:
    differs, n = facts.protocol["raw_differs"], facts.protocol["n"]
    if differs:
        yield make(
            "raw_differs",
            max(abs(facts.text - facts.protocol["raw_f1"]), facts.text * differs / n),
            facts,
            "Embeddings do not do what token ids do",
            [f"the raw row's answer differs from the text row's on {differs} of {n} questions"],
            "Nothing else counts until they agree: check dtype, position ids and attention mask.",
            None,
            least="warning",
        )


def _without(facts: Facts, how: str, text: float, ours: float) -> tuple[float, str]:
    """What F1 without the fault brings back, to text row or bottleneck, and the evidence for it."""
    rows = f"text row {points(facts.text)} → {points(text)}, bottleneck {points(facts.ours)} → {points(ours)}"
    return max(text - facts.text, ours - facts.ours), f"{how}: {rows}"


def _no_bos(facts: Facts, run: str) -> Iterator[Finding]:
    bos, n = facts.protocol["bos"], facts.protocol["n"]
    if not (bos["expected"] and bos["missing"]):
        return
    gain, compared = _without(facts, "with BOS in front", bos["f1_text_with"], bos["f1_ours_with"])
    yield make(
        "no_bos",
        gain,
        facts,
        "Prompts do not begin with BOS",
        [
            f"{bos['missing']} of {n} prompts lack the token that the model was trained to begin with",
            compared,
        ],
        "Use a tokenizer that adds BOS (its post-processor or add_bos_token), and train again.",
        None,
        least="warning",
    )


def _cut(facts: Facts, run: str) -> Iterator[Finding]:
    cut, n = facts.protocol["cut"], facts.protocol["n"]
    if not (cut["question_missing"] or cut["anchor_missing"]):
        return
    gain, compared = _without(facts, "with whole prompts", cut["f1_text_whole"], cut["f1_ours_whole"])
    yield make(
        "cut",
        gain,
        facts,
        "Truncation took the question away",
        [
            f"{cut['question_missing']} of {n} prompts do not contain their question, "
            f"{cut['anchor_missing']} do not end in `Answer:`",
            compared,
        ],
        "Cut the far end of the context, never the question: raise the length limit.",
        None,
        least="warning",
    )


def _truncated(facts: Facts, run: str) -> Iterator[Finding]:
    lost, n = facts.protocol["truncated"], facts.protocol["n"]
    if lost["prompts"]:
        yield make(
            "truncated",
            0.0,
            facts,
            "Contexts were truncated",
            [f"{lost['prompts']} of {n} prompts lost {lost['tokens']} tokens at the end of their context"],
            "Raise data.max_prompt_tokens if the model's context allows it.",
            None,
        )


def _no_stop(facts: Facts, run: str) -> Iterator[Finding]:
    stop, n = facts.protocol["stop"], facts.protocol["n"]
    if stop["run_on"]:
        gain, compared = _without(facts, "cut there", stop["f1_text_first_line"], stop["f1_ours_first_line"])
        yield make(
            "no_stop",
            gain,
            facts,
            "Answers run on after their line has ended",
            [
                f"{stop['run_on']} of {n} answers of the text row go on after the first newline",
                compared,
            ],
            "Stop generating at the newline, and score the first line only.",
            None,
            least="warning",
        )
    elif stop["unstopped"] > 0.1 * n:
        yield make(
            "unstopped",
            0.0,
            facts,
            "The bare model does not end its answers",
            [f"{stop['unstopped']} of {n} answers of the text row reach the length limit without an end"],
            "The prompt's form does not suit this model: an instruct model may need its chat template.",
            None,
        )


def _prompt_form(facts: Facts, run: str) -> Iterator[Finding]:
    protocol, n = facts.protocol, facts.protocol["n"]
    if protocol["trailing_space"]:
        yield make(
            "trailing_space",
            0.0,
            facts,
            "Prompts end in a space",
            [f"{protocol['trailing_space']} of {n}: the answer's own space tokenizes differently then"],
            "End the prompt in `Answer:`.",
            None,
            least="warning",
        )
    chat = protocol["chat_template"]
    if chat["there"] and not chat["used"]:
        yield make(
            "chat_template",
            0.0,
            facts,
            "An instruct model is asked without its chat template",
            [f"the tokenizer has a chat template; the text row's F1 without it is {points(facts.text)}"],
            "Compare with the base model, or judge by the text row: it is the ceiling of this protocol.",
            None,
        )


def _no_ceiling(facts: Facts, run: str) -> Iterator[Finding]:
    if facts.text < HOPELESS:
        yield make(
            "no_ceiling",
            0.0,
            facts,
            "The bare model does not answer these questions",
            [f"F1 of the text row, the ceiling, is {points(facts.text)}: no bottleneck can be judged by it"],
            "Ask questions that the model can answer, or use a model that answers these.",
            None,
            least="warning",
        )


def _format(facts: Facts, run: str) -> Iterator[Finding]:
    """The bare model's own answers; `rules_bottleneck` has what the bottleneck adds to it."""
    text = facts.measured["generation"]["text"]
    if text["points_in_form"] >= NOTABLE:
        yield make(
            "format",
            text["points_in_form"],
            facts,
            "The bare model's answers contain the gold text but say more",
            [f"{100 * text['contains_gold_but_wrong']:.0f} % of them contain a gold answer with F1 below 50"],
            "The gap is format, not knowledge: look at the examples in diagnosis.json.",
            None,
        )


RULES = (_no_ceiling, _raw_differs, _no_bos, _cut, _truncated, _no_stop, _prompt_form, _format)
