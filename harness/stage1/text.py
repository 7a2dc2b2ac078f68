"""Text that others wrote, as it may be shown: nothing that a terminal would obey, and not without end."""

LONGEST = 1000
"""Characters of a message; what is longer loses its middle."""


def visible(text: str) -> str:
    """`text` with its control and direction characters written out, which a terminal would obey."""
    return text if text.isprintable() else "".join(map(_written_out, text))


def visible_lines(text: str) -> str:
    """`visible`, but for the ends of lines, which stay."""
    return "\n".join(map(visible, text.split("\n")))


def _written_out(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` on one line of at most `longest` characters, `visible`."""
    text = visible(" ".join(part.strip() for part in text.splitlines() if part.strip()))
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
