"""Reconstruct the tiny model, tokenizer and weights, from nothing: an hour on two CPU cores.

    python tools/train_tiny.py --output plugins/models/stage1_models/tiny/model

The tokenizer knows each name, year and number of tiny-squad as one token; the model is a Llama of four
layers. What makes so small a model read within the hour:

* six question-answer pairs after each passage in one sequence, each trained on its answer;
* a little of the ordinary language-model loss over the whole sequence;
* a curriculum: at first some sequences are random tokens told twice, which brings the copying circuit, and
  passages tell many facts about one subject, which teaches to find the fact that is asked for.

On every evaluation the output folder receives a complete snapshot, so it can be used while the training
goes on.
"""

import argparse
import copy
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from stage1.evaluation.squad import exact_match, f1
from stage1_datasets.tiny_squad import Record, Split, tiny_squad
from stage1_datasets.tiny_squad.lexicon import NUMBERS, YEARS, all_names

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
SPLIT = r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LM_WEIGHT = 0.3  # of the ordinary loss beside the loss on the answers
COPY_SHARE = 0.3  # of the sequences are repeated random tokens while the curriculum asks for them
FULL = (3, 2)  # subjects in a passage, facts about each
EASY = (1, 5)  # which fact is asked for, before whose
EASY_SHARE = 0.15  # of the passages after the first part of the curriculum
Example = tuple[list[int], list[bool]]  # the tokens, and which of them belong to an answer


# --- The tokenizer ---


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: some hundred learned pieces for any text, then every word of tiny-squad as a whole.

    As in Llama 3, ``ignore_merges`` lets a whole word of the vocabulary stand without the merges that would
    spell it, so 1,200 names cost 1,200 entries and not several times as many.
    """
    text = [
        f"Context: {r['context']}\nQuestion: {r['question']}\nAnswer:"
        for r in tiny_squad("train", 4000, seed=-1)
    ]
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer
    lexicon = {" " + word for word in (*all_names(), *YEARS, *NUMBERS)}
    plain = (" ".join(w for w in t.split(" ") if " " + w.rstrip(".?") not in lexicon) for t in text)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(plain, trainer)
    learned = json.loads(learner.to_str())["model"]

    vocabulary: dict[str, int] = learned["vocab"]
    words = dict.fromkeys(piece for t in text for piece, _ in pre_tokenizer.pre_tokenize_str(t))
    whole = (as_bytes.pre_tokenize_str(word)[0][0] for word in sorted(lexicon))
    for word in (*words, *whole):
        vocabulary.setdefault(word, len(vocabulary))

    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def check_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer as a user would and make sure of what the rest relies on."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token_id
    for name in all_names():
        tokens = tokenizer(" " + name)["input_ids"]
        if tokens[:1] != [bos] or len(tokens) != 2:
            raise SystemExit(f"{name} is not one token after the start token: {tokens}")
    text = "Ünïcode 東京\n\tand 12,345 'spaces'  . "
    if tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) != text:
        raise SystemExit("the tokenizer changes text")
    if (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) != (EOS, PAD, "left"):
        raise SystemExit("the tokenizer's configuration did not survive saving")
    return tokenizer


# --- The data ---


def prompt(record: Record) -> str:
    """The one prompt of the whole project."""
    return f"Context: {record['context']}\nQuestion: {record['question']}\nAnswer:"


def passages(tokenizer: PreTrainedTokenizerBase, seed: int, shape: tuple[int, int]) -> Iterator[Example]:
    """Endless training passages of one shape, each followed by its questions and answers."""
    records = tiny_squad("train", 10**9, seed=seed, subjects=shape[0], facts=shape[1])
    for _, group in groupby(records, key=lambda record: record["context"]):
        pieces: list[str] = []
        for number, record in enumerate(group):
            asked = prompt(record)
            pieces += [asked if number == 0 else asked[asked.index("Question:") :]]
            pieces += [" " + record["answers"]["text"][0] + "\n"]
        # Every piece ends where the tokenizer would part the text anyway, so this equals encoding it at once.
        encoded = tokenizer(pieces, add_special_tokens=False)["input_ids"]
        tokens, answers = [tokenizer.bos_token_id], [False]
        for number, piece in enumerate(encoded):
            tokens += piece
            answers += [number % 2 == 1] * len(piece)
        yield tokens, answers


def repeated(rng: random.Random, vocabulary: int, length: int) -> Example:
    """Random tokens told twice: the second time they can only be copied."""
    half = [rng.randrange(vocabulary) for _ in range(length // 2)]
    return half * 2, [False] * len(half) + [True] * len(half)


def batches(
    tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One batch of tokens and answer flags per step, following the curriculum."""
    rng = random.Random(arguments.seed)
    sources = {shape: passages(tokenizer, arguments.seed, shape) for shape in (EASY, FULL)}
    group = 8  # passages are sorted by length within eight batches, to pad little
    for step in range(0, arguments.steps, group):
        copies = int(COPY_SHARE * arguments.batch) if step < arguments.copy_until else 0
        easy = 1.0 if step < arguments.easy_until else EASY_SHARE
        pool = [
            next(sources[EASY if rng.random() < easy else FULL])
            for _ in range(group * (arguments.batch - copies))
        ]
        pool.sort(key=lambda example: len(example[0]))
        starts = list(range(0, len(pool), arguments.batch - copies))
        rng.shuffle(starts)
        for start in starts:
            chunk = pool[start : start + arguments.batch - copies]
            longest = len(chunk[-1][0])
            chunk += [repeated(rng, len(tokenizer), longest) for _ in range(copies)]
            tokens = torch.full((len(chunk), longest), tokenizer.pad_token_id)
            flags = torch.zeros((len(chunk), longest), dtype=torch.bool)
            for row, (ids, answers) in enumerate(chunk):
                tokens[row, : len(ids)] = torch.tensor(ids)
                flags[row, : len(ids)] = torch.tensor(answers)
            yield tokens, flags


# --- The model ---


def build_model(tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> LlamaForCausalLM:
    """An untrained Llama of the requested width."""
    torch.manual_seed(arguments.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=arguments.hidden,
            intermediate_size=arguments.intermediate,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.heads,
            num_key_value_heads=arguments.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def losses(
    model: LlamaForCausalLM, tokens: torch.Tensor, flags: torch.Tensor, pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss over the answers, and over all tokens.

    Padding stands to the right here, where a causal model never looks back at it: no mask is needed.
    """
    hidden = model.model(tokens[:, :-1], use_cache=False).last_hidden_state
    targets = tokens[:, 1:]
    keep = targets != pad
    logits = model.lm_head(hidden[keep])
    each = F.cross_entropy(logits.float(), targets[keep], reduction="none")
    return each[flags[:, 1:][keep]].mean(), each.mean()


def rate(step: int, arguments: argparse.Namespace) -> float:
    """The learning rate as a part of its peak: linear warm-up, then half a cosine down to 2 %."""
    if step < arguments.warmup:
        return float((step + 1) / arguments.warmup)
    done = float(step - arguments.warmup) / max(1, arguments.steps - arguments.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


@torch.inference_mode()
def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, records: list[Record], batch: int = 100
) -> tuple[float, float]:
    """F1 and exact match, in percent, of greedy answers up to the end of the line."""
    totals = [0.0, 0.0]
    ordered = sorted(records, key=lambda record: len(record["context"]))
    for start in range(0, len(ordered), batch):
        chunk = ordered[start : start + batch]
        inputs = tokenizer([prompt(record) for record in chunk], return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
        )
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for record, answer in zip(chunk, answers, strict=True):
            first_line = answer.split("\n")[0].strip()
            totals[0] += f1(first_line, record["answers"]["text"])
            totals[1] += exact_match(first_line, record["answers"]["text"])
    return 100 * totals[0] / len(records), 100 * totals[1] / len(records)


def questions(split: Split, count: int) -> list[Record]:
    """The first questions of a split."""
    return list(tiny_squad(split, count // 6 + 1))[:count]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> LlamaForCausalLM:
    """Put a snapshot, rounded to bfloat16, in place; return the model as a reader would load it."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(model).bfloat16().save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    folder.mkdir(parents=True, exist_ok=True)
    for file in fresh.iterdir():
        file.replace(folder / file.name)  # each file changes in one step; only the weights differ
    fresh.rmdir()
    return load(folder)


def load(folder: Path) -> LlamaForCausalLM:
    """The saved model, as anyone would load it."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model


# --- The run ---


def train(arguments: argparse.Namespace) -> None:
    """Train, report, evaluate and save until the last step; then measure the test split."""
    build_tokenizer().save_pretrained(arguments.output)
    tokenizer = check_tokenizer(arguments.output)
    model = build_model(tokenizer, arguments)
    save(model, tokenizer, arguments.output)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size:,} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)

    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}],
        lr=arguments.rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    started = since = time.monotonic()
    seen = 0
    selection = questions("selection", 200)
    for step, (tokens, flags) in zip(
        range(1, arguments.steps + 1), batches(tokenizer, arguments), strict=False
    ):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * rate(step, arguments)
        with torch.autocast("cpu", torch.bfloat16):
            answer_loss, lm_loss = losses(model, tokens, flags, tokenizer.pad_token_id)
        (answer_loss + LM_WEIGHT * lm_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += tokens.numel()

        if step % 25 == 0:
            now = time.monotonic()
            each = (now - started) / step
            print(
                f"step {step}  answers {answer_loss.item():.3f}  all {lm_loss.item():.3f}"
                f"  {seen / (now - since):.0f} tokens/s  {now - started:.0f} s  {each:.2f} s/step"
                f"  {each * (arguments.steps - step) / 60:.0f} min left",
                flush=True,
            )
            seen, since = 0, now
        if step % arguments.every == 0 or step == arguments.steps:
            scores = evaluate(save(model, tokenizer, arguments.output), tokenizer, selection)
            print(f"step {step}  selection F1 {scores[0]:.1f}  exact match {scores[1]:.1f}", flush=True)

    scores = evaluate(load(arguments.output), tokenizer, questions("test", 1000))
    minutes = (time.monotonic() - started) / 60
    print(f"test F1 {scores[0]:.2f}  exact match {scores[1]:.2f}  after {minutes:.0f} minutes", flush=True)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=704)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--copy-until", type=int, default=600, help="last step with repeated random tokens")
    parser.add_argument("--easy-until", type=int, default=700, help="last step with only simple passages")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
