"""How the questions are put and the answers cut: what can be wrong before any bottleneck.

What is asked again, with BOS or whole, is asked only where something is missing.
"""

from typing import Any

from stage1.data.prompts import Prompt
from stage1.diagnosis.case import Case
from stage1.evaluation.answers import f1_scores


def measure(case: Case) -> dict[str, Any]:
    """F1 of text and raw embeddings, and what is odd about prompts and answers; F1 is 0 to 100.

    `unstopped` counts the tokens of an answer by tokenizing it again, which a model that spells words in an
    unusual way may undercut.
    """
    text, raw = case.text, case.ask("raw", case.raw)
    lost = [prompt.lost for prompt in case.prompts if prompt.lost]
    shown = _decoded(case, [prompt.ids for prompt in case.prompts])
    return {
        "n": len(case.questions),
        "text_f1": text.mean,
        "raw_f1": raw.mean,
        "raw_differs": sum(a != b for a, b in zip(text.answers, raw.answers, strict=True)),
        "bos": _bos(case),
        "truncated": {"prompts": len(lost), "tokens": sum(lost)},
        "cut": _cut(case, shown),
        "stop": _stop(case),
        "trailing_space": sum(prompt.endswith(" ") for prompt in shown),
        "chat_template": chat_template(case),
    }


def _decoded(case: Case, ids: list[list[int]]) -> list[str]:
    """What the model reads, without special tokens."""
    texts: list[str] = case.session.tokenizer.batch_decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return texts


def _longest(case: Case) -> int:
    """Tokens of a prompt that the model's context holds beside the answer."""
    return case.session.context_length - case.session.config.eval.max_new_tokens


def _asked(case: Case, how: str, prompts: list[Prompt]) -> tuple[float, float]:
    """F1 of the text row and of the bottleneck on other `prompts` to the same questions."""
    ours = case.view(case.bottleneck.reconstruct, prompts)
    return case.ask(f"text {how}", None, prompts).mean, case.ask(f"bottleneck {how}", ours, prompts).mean


def _bos(case: Case) -> dict[str, Any]:
    bos = case.session.tokenizer.bos_token_id
    named = getattr(
        case.session.model.llm.config.get_text_config(), "bos_token_id", None
    )  # not every model has one
    expected = bos is not None and named is not None
    missing = 0 if bos is None else sum(prompt.ids[:1] != [bos] for prompt in case.prompts)
    text = ours = None
    if expected and missing:
        text, ours = _asked(case, "with BOS", [with_bos(p, bos, _longest(case)) for p in case.prompts])
    return {"expected": expected, "missing": missing, "f1_text_with": text, "f1_ours_with": ours}


def with_bos(prompt: Prompt, bos: int, longest: int) -> Prompt:
    """The prompt with BOS in front, raw; one that fills the context loses its first token to it."""
    if prompt.ids[:1] == [bos]:
        return prompt
    room = longest - 1
    return prompt._replace(ids=[bos, *prompt.ids[-room:]], cross=[False, *prompt.cross[-room:]])


def _cut(case: Case, shown: list[str]) -> dict[str, Any]:
    # Both sides have been through the tokenizer: it may change letters (normalisation, unknown characters).
    asked = case.session.tokenizer([q.question for q in case.questions], add_special_tokens=False)
    questions = _decoded(case, asked["input_ids"])
    lacking = sum(_bare(q) not in _bare(prompt) for q, prompt in zip(questions, shown, strict=True))
    # A trailing space is a fault of its own; such a prompt was not cut.
    ending = case.session.builder().text.ending.rstrip(" ")
    open_ended = sum(not prompt.rstrip(" ").endswith(ending) for prompt in shown)
    text = ours = None
    if lacking or open_ended:
        config = case.session.config
        unlimited = {
            "data": config.data.model_copy(update={"max_prompt_tokens": None}),
            "prompt": config.prompt.model_copy(update={"truncate": "context"}),
        }
        session = case.session.under(config.model_copy(update=unlimited))
        whole = session.builder().build(case.questions, session.crossing, max_tokens=_longest(case))
        text, ours = _asked(case, "whole", whole)
    return {
        "question_missing": lacking,
        "anchor_missing": open_ended,
        "f1_text_whole": text,
        "f1_ours_whole": ours,
    }


def _bare(text: str) -> str:
    return "".join(text.split())


def _stop(case: Case) -> dict[str, Any]:
    answers, limit = case.text.answers, case.session.config.eval.max_new_tokens
    lengths = [len(ids) for ids in case.session.tokenizer(answers, add_special_tokens=False)["input_ids"]]
    run_on = sum(bool(answer.partition("\n")[2].strip()) for answer in answers)

    def first_line(rows: list[str]) -> float | None:
        lines = [answer.partition("\n")[0] for answer in rows]
        return float(f1_scores(case.questions, lines).mean()) if run_on else None

    return {
        "unstopped": sum(
            length >= limit and "\n" not in answer for length, answer in zip(lengths, answers, strict=True)
        ),
        "run_on": run_on,
        "f1_text_first_line": first_line(answers),
        "f1_ours_first_line": first_line(case.ours.answers),
    }


def chat_template(case: Case) -> dict[str, bool]:
    """Used, where the prompts hold control tokens that the template names."""
    tokenizer = case.session.tokenizer
    template = str(tokenizer.chat_template or "")
    everywhere = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    control = {
        number
        for text, number in tokenizer.get_added_vocab().items()
        if text in template and text not in everywhere
    }
    return {"there": bool(template), "used": any(control.intersection(p.ids) for p in case.prompts)}
