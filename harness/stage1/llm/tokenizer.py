"""The model's tokenizer."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stage1.errors import UsageError
from stage1.llm.configuration import origin, read_config
from stage1.llm.gguf_file import read_once
from stage1.llm.quiet import quiet_transformers, silent_output
from stage1.llm.weights import is_gguf


def load_tokenizer(source: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of the model in `source`, with a padding token and padding on the left.

    Raises:
        UsageError: there is none, or none that tells the place of each token in the text.
    """
    read_config(source, trust_remote_code)  # transformers reads it too; its faults are its own
    folder, options = origin(source, trust_remote_code)
    file = source if is_gguf(source) else source / "tokenizer.json"
    try:
        with quiet_transformers(), silent_output(), read_once():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            tokenizer.decode(tokenizer("A text.", return_offsets_mapping=tokenizer.is_fast)["input_ids"])
    except Exception as error:  # the tokenizers library raises plain Exception
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"The tokenizer in {source} needs Python code of its own, which is not run by default.",
                "If you trust its author: --trust-remote-code, or --set model.trust_remote_code=true.",
            ) from None
        reason = str(error).strip().split("\n")[0] if file.is_file() else "it is missing"
        raise UsageError(
            f"The tokenizer {file} cannot be used: {reason}.",
            "Convert the model again with its tokenizer."
            if is_gguf(source)
            else "Copy the tokenizer's files (tokenizer.json, tokenizer_config.json) next to config.json.",
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.eos_token is None:
        raise UsageError(
            f"The tokenizer in {source} has no tokenizer.json or no end-of-text token; stage1 needs both.",
            "Save it with transformers as a fast tokenizer, its eos_token set.",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def token_text(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """The token as it stands in a text; in the tokenizer's own notation where it is no text by itself."""
    if token >= len(tokenizer):
        return f"<id {token}>"  # tables are often longer than the vocabulary
    own = str(tokenizer.convert_ids_to_tokens(token))
    if own.startswith("▁"):  # SentencePiece's space, which decoding one token alone drops
        return own.replace("▁", " ")
    text = str(tokenizer.decode([token]))
    return own if not text or "\N{REPLACEMENT CHARACTER}" in text else text
