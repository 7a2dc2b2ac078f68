"""Likelihoods through a bottleneck: where nothing is lost nothing changes, and contexts are what crosses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import ByteLevel
from torch import Tensor

from conftest import Notes, small_config, with_llm
from pairs import Pairs
from random_llama import calls_of, random_llama
from stage1.bottleneck.bottleneck import Bottleneck
from stage1.errors import Stage1Error
from stage1.evaluation.generation import Embed, tokens_containing
from stage1.evaluation.lm_eval.evaluate import embed_requests
from stage1.evaluation.lm_eval.model import Stage1LM
from stage1.evaluation.lm_eval.quiet import quiet_lm_eval
from stage1.llm.model import load_llm
from stage1.llm.tokenizer import load_tokenizer
from stage1.plugins import load_plugins
from stage1.plugins.interfaces import Adapter, ComponentConfig
from stage1.plugins.tensors import Code, Embedded
from stage1.progress import Progress
from stage1.runs.journal import Journal
from stage1.session import Session
from stage1_models.tiny import MODEL_DIR

CPU = torch.device("cpu")
WIDTH = 32

TEXTS = [
    "The Purtane Institute was established in 1818.",
    "It can be seen in Zilburgh",
    "The vessel Tedyne took aboard 174 sailors. The captain of the vessel was Darand",
    "A",
    "Who was it? Vaneth was the captain of the vessel Riphon, and nobody else.",
]
SAME_LENGTH = ["In 1453 it fell", "In 1818 it rose", "In 1204 it fell"]
ENDINGS = [" in", " Darand", " the vessel Riphon.", "\nQuestion: How many?"]


def instance(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", 0, 1))


def generations(texts: Sequence[str]) -> list[Instance]:
    settings = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    return [instance("generate_until", text, settings) for text in texts]


def likelihoods(texts: Sequence[str]) -> list[Instance]:
    return [instance("loglikelihood", text, ending) for text in [*texts, ""] for ending in ENDINGS]


def rolling(texts: Sequence[str]) -> list[Instance]:
    return [instance("loglikelihood_rolling", text) for text in [*texts, " ".join(TEXTS * 9)]]


def tokenizer(*, bos: bool) -> Any:
    loaded: Any = load_tokenizer(MODEL_DIR)
    if not bos:
        loaded.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    assert (loaded("A")["input_ids"][0] == loaded.bos_token_id) == bos
    return loaded


def llama(folder: Path, *, tied: bool) -> Any:
    model: Any = load_llm(random_llama(folder, tied=tied), dtype="auto", device=CPU)
    weight = model.get_input_embeddings().weight
    weight.data.copy_(weight.bfloat16().float())  # what crosses the wire unharmed
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return llama(tmp_path_factory.mktemp("llama"), tied=request.param)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return llama(tmp_path_factory.mktemp("llama"), tied=False)


def embed_through(bottleneck: Bottleneck, model: Any) -> Embed:
    session = Session.open(small_config(f"model={model.name_or_path}"), Progress(), data="none")
    return embed_requests(bottleneck, with_llm(session, model))


def identity() -> Bottleneck:
    registry = load_plugins()
    compressor = registry.get("compressor", "identity")(ComponentConfig(), WIDTH)
    return Bottleneck(compressor, registry.get("adapter", "identity")(ComponentConfig(), WIDTH, WIDTH))


ASK: dict[str, Callable[[Sequence[str]], list[Instance]]] = {
    "generate_until": generations,
    "loglikelihood": likelihoods,
    "loglikelihood_rolling": rolling,
}


@pytest.mark.parametrize("whole", [False, True], ids=["context", "all"])
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("kind", ASK)
def test_an_identity_bottleneck_changes_no_bit(kind: str, bos: bool, whole: bool, either: Any) -> None:
    words, embed = tokenizer(bos=bos), embed_through(identity(), either)
    for texts, size in ((TEXTS, 16), (SAME_LENGTH, 16), (SAME_LENGTH, 1)):  # padded, not, alone
        requests = ASK[kind](texts)
        with quiet_lm_eval():
            stock: Any = HFLM(pretrained=either, tokenizer=words, batch_size=size)
            expected = getattr(stock, kind)(requests, disable_tqdm=True)
        ours = Stage1LM(either, words, embed=embed, whole=whole, batch_size=size)
        assert getattr(ours, kind)(requests) == expected
        assert getattr(Stage1LM(either, words, batch_size=size), kind)(requests) == expected


def test_the_batch_changes_no_answer(untied: Any) -> None:
    words, embed = tokenizer(bos=True), embed_through(pooling(), untied)
    for kind, requests in ((name, ask(TEXTS)) for name, ask in ASK.items()):
        one, some, many = (
            getattr(Stage1LM(untied, words, embed=embed, batch_size=size), kind)(requests)
            for size in (1, 3, 16)
        )
        if kind == "generate_until":
            assert one == some == many
            assert len(set(one)) > 2
            continue
        for other in (some, many):
            torch.testing.assert_close(torch.tensor(other), torch.tensor(one), rtol=1e-5, atol=2e-5)


# -- what crosses -----------------------------------------------------------------------------------------


def recorded(model: Any, crossed: dict[tuple[int, ...], list[list[bool]]]) -> Embed:
    """Raw embeddings; notes which positions of which tokens were to cross."""

    def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        for tokens, where, attends in zip(ids, cross, attention, strict=True):
            crossed.setdefault(tuple(tokens[attends].tolist()), []).append(where[attends].tolist())
            assert not where[~attends].any()
        return Embedded(model.get_input_embeddings()(ids), attention)

    return embed


@pytest.mark.parametrize("whole", [False, True])
def test_the_context_crosses_and_the_continuation_only_on_request(whole: bool, untied: Any) -> None:
    words = tokenizer(bos=True)
    crossed: dict[tuple[int, ...], list[list[bool]]] = {}
    lm = Stage1LM(untied, words, embed=recorded(untied, crossed), whole=whole, batch_size=4)
    lm.loglikelihood([instance("loglikelihood", TEXTS[0], " the vessel Riphon")])
    context = words(TEXTS[0])["input_ids"]
    both = words(TEXTS[0] + " the vessel Riphon")["input_ids"]
    inside, ending = len(context) - 1, len(both) - 1 - len(context)
    assert ending > 1
    assert crossed == {tuple(both[:-1]): [[False, *[True] * inside, *[whole] * ending]]}
    crossed.clear()
    lm.loglikelihood_rolling([instance("loglikelihood_rolling", "One two.")])
    assert [any(where) for [where] in crossed.values()] == [True] * whole


def test_special_tokens_cross_on_request(untied: Any) -> None:
    crossed: dict[tuple[int, ...], list[list[bool]]] = {}
    embed = recorded(untied, crossed)
    lm = Stage1LM(untied, tokenizer(bos=True), embed=embed, keep_special=False)
    lm.loglikelihood([instance("loglikelihood", "A", " b")])
    lm.generate_until(generations(["A"]))
    assert all(where[0] for found in crossed.values() for where in found)


def test_the_same_tokens_split_elsewhere_cross_elsewhere(untied: Any) -> None:
    """lm-eval asks once for contexts and continuations that add up to the same tokens."""
    words = tokenizer(bos=True)
    requests = [("The captain", " of the vessel"), ("The captain of", " the vessel")]
    crossed: dict[tuple[int, ...], list[list[bool]]] = {}
    lm = Stage1LM(untied, words, embed=recorded(untied, crossed), batch_size=4)
    lm.loglikelihood([instance("loglikelihood", *request) for request in requests])
    [found] = crossed.values()
    assert [sum(where) for where in found] == [len(words(text)["input_ids"]) - 1 for text, _ in requests]


def test_a_zero_at_the_end_is_no_padding(untied: Any) -> None:
    crossed: dict[tuple[int, ...], list[list[bool]]] = {}
    lm = Stage1LM(untied, tokenizer(bos=False), embed=recorded(untied, crossed), batch_size=4)
    pairs: list[Any] = [(("a", "b"), [7, 8], [0, 9]), (("a", "c"), [7, 8], [9])]
    pairs.append((("d", "e"), [5, 6, 7], [8, 9, 3]))
    with quiet_lm_eval():
        stock: Any = HFLM(pretrained=untied, tokenizer=tokenizer(bos=False), batch_size=4)
    ours, theirs = lm._loglikelihood_tokens(pairs), stock._loglikelihood_tokens(pairs, disable_tqdm=True)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)
    assert crossed == {
        (7, 8, 0): [[True, True, False]],
        (7, 8): [[True, True]],
        (5, 6, 7, 8, 9): [[True, True, True, False, False]],
    }


# -- codes of another length ------------------------------------------------------------------------------


class Same(Adapter):
    """What came over the wire."""

    name = "same"

    def forward(self, code: Code) -> Tensor:
        return code.vectors


def pooling() -> Bottleneck:
    return Bottleneck(Pairs(None, WIDTH), Same(None, WIDTH, WIDTH))


def by_hand(model: Any, context: list[int], continuation: list[int], *, bos: bool) -> Tensor:
    """Logits [A + 1, V] that predict the continuation and what follows, behind the pooled context."""
    embedding = model.get_input_embeddings()
    raw, crossing = context[:bos], context[bos:]
    pairs = (crossing[i : i + 2] for i in range(0, len(crossing), 2))
    pooled = [embedding(torch.tensor(pair)).mean(0).bfloat16().float() for pair in pairs]
    ends = [embedding(torch.tensor(ids, dtype=torch.long)) for ids in (raw, continuation)]
    with torch.no_grad():
        logits: Tensor = model(inputs_embeds=torch.cat([ends[0], torch.stack(pooled), ends[1]])[None]).logits
    return logits[0, -len(continuation) - 1 :]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("size", [1, 7])
def test_a_shortened_context_is_followed_by_its_continuation(bos: bool, size: int, untied: Any) -> None:
    words = tokenizer(bos=bos)
    lm = Stage1LM(untied, words, embed=embed_through(pooling(), untied), batch_size=size)
    requests = [instance("loglikelihood", text, ending) for text in TEXTS for ending in ENDINGS]
    for request, (found, _) in zip(requests, lm.loglikelihood(requests), strict=True):
        context, continuation = lm._encode_pair(*request.args)
        logits = by_hand(untied, context, continuation, bos=bos)[:-1].log_softmax(-1)
        expected = float(logits.gather(1, torch.tensor(continuation)[:, None]).sum())
        assert found == pytest.approx(expected, abs=2e-5)


def test_a_text_of_several_windows_has_no_context(untied: Any) -> None:
    """A later window begins with a token of the one before, which is text to be scored like the rest."""
    words, requests = tokenizer(bos=True), [instance("loglikelihood_rolling", " ".join(TEXTS * 9))]
    assert len(words(requests[0].args[0])["input_ids"]) > untied.config.max_position_embeddings
    lm = Stage1LM(untied, words, embed=embed_through(pooling(), untied))
    assert lm.loglikelihood_rolling(requests) == Stage1LM(untied, words).loglikelihood_rolling(requests)


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_where_nothing_crosses_the_bare_model_is_asked(kind: str, untied: Any) -> None:
    """An empty code is more than a compressor can be asked for; beside another request it is an empty row."""
    words, embed = tokenizer(bos=True), embed_through(pooling(), untied)
    special, other = ASK[kind]([str(words.bos_token)])[0], ASK[kind](TEXTS)[0]
    for requests in ([special], [special, other]):
        bare = getattr(Stage1LM(untied, words, batch_size=2), kind)(requests)
        ours = getattr(Stage1LM(untied, words, embed=embed, batch_size=2), kind)(requests)
        assert ours[0] == (bare[0] if kind == "generate_until" else pytest.approx(bare[0], abs=1e-4))
        assert ours[1:] != bare[1:] or len(requests) == 1


def test_shortened_requests_are_masked_and_positioned(untied: Any) -> None:
    """Rotary positions do not care where a row begins; absolute ones would."""
    lm = Stage1LM(untied, tokenizer(bos=True), embed=embed_through(pooling(), untied), batch_size=16)
    with calls_of(untied) as calls:
        lm.loglikelihood([instance("loglikelihood", text, " in the city") for text in TEXTS])
    [call] = calls
    attention, positions = call["attention_mask"].bool(), call["position_ids"]
    assert attention[:, -1].all()
    assert not attention[:, 0].all()
    for mask, places in zip(attention, positions, strict=True):
        assert places[mask].tolist() == list(range(int(mask.sum())))


def test_a_shortened_context_is_followed_by_its_answer(untied: Any) -> None:
    words = tokenizer(bos=True)
    answers = []
    for size in (1, 5):
        lm = Stage1LM(untied, words, embed=embed_through(pooling(), untied), batch_size=size)
        answers.append(lm.generate_until(generations(TEXTS)))
    assert answers[0] == answers[1]
    for text, answer in zip(TEXTS, answers[0], strict=True):
        ids: list[int] = words(text)["input_ids"]
        said: list[int] = []
        newlines = tokens_containing(words, "\n")
        while len(said) < 6:  # greedily, one token after the other
            said.append(int(by_hand(untied, ids, said, bos=True)[-1].argmax()))
            if said[-1] in newlines or said[-1] == words.eos_token_id:
                break
        assert answer == words.decode(said, skip_special_tokens=True).split("\n")[0]


# -- memory and interruptions -----------------------------------------------------------------------------


def test_out_of_memory_halves_the_batch(untied: Any) -> None:
    words, raw = tokenizer(bos=True), recorded(untied, {})

    def tight(limit: int) -> Embed:
        def embed(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
            if len(ids) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return raw(ids, cross, attention)

        return embed

    notes = Notes()
    requests = likelihoods(TEXTS)
    ours = Stage1LM(untied, words, embed=tight(3), batch_size=16, progress=notes).loglikelihood(requests)
    expected = Stage1LM(untied, words, batch_size=2).loglikelihood(requests)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in expected], abs=1e-5)
    assert [note.split(":")[0] for note in notes.notes] == [
        f"Out of memory with {size} prompts at a time" for size in (16, 8, 4)
    ]
    with pytest.raises(Stage1Error, match="Out of memory with a single prompt"):
        Stage1LM(untied, words, embed=tight(0), batch_size=2).loglikelihood(requests)


@pytest.mark.parametrize("kind", ASK)
def test_what_was_answered_is_not_asked_again(kind: str, untied: Any, tmp_path: Path) -> None:
    words, requests = tokenizer(bos=True), ASK[kind](TEXTS * 3)
    requests = list({str(request.args): request for request in requests}.values())
    raw = recorded(untied, {})
    calls = 0

    def dying(ids: Tensor, cross: Tensor, attention: Tensor) -> Embedded:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return raw(ids, cross, attention)

    def asked(embed: Embed, decides: str = "run") -> tuple[list[Any], int]:
        journal = Journal(tmp_path, decides, Progress())
        lm = Stage1LM(untied, words, embed=embed, whole=True, batch_size=1, journal=journal)
        return getattr(lm, kind)(requests), lm.asked

    with pytest.raises(KeyboardInterrupt):
        asked(dying)
    expected, all_of_them = asked(raw, "another run")
    assert all_of_them == len(requests)
    answers, rest = asked(raw)
    assert answers == expected
    if kind != "loglikelihood_rolling":  # told after every eight texts: these are fewer
        assert rest == len(requests) - 2
    assert asked(raw) == (expected, 0)


def test_random_answers_are_drawn_again(untied: Any, tmp_path: Path) -> None:
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    for _ in range(2):
        lm = Stage1LM(untied, tokenizer(bos=True), journal=Journal(tmp_path, "run", Progress()))
        lm.generate_until([instance("generate_until", "A", settings)])
        assert lm.asked == 1


def test_nothing_is_printed(untied: Any, capfd: pytest.CaptureFixture[str]) -> None:
    lm = Stage1LM(untied, tokenizer(bos=True), embed=recorded(untied, {}), batch_size=2)
    for kind, ask in ASK.items():
        getattr(lm, kind)(ask(TEXTS))
    assert capfd.readouterr() == ("", "")
