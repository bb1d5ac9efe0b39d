"""An answer as HTML: its markdown, with a chip at each citation and a mark on each sentence that nothing supports.

What a model writes is never markup of ours: raw HTML, links and pictures stay the text that they are, so that no answer
makes a browser load or open anything.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from ingest.visible import clean


@dataclass(frozen=True)
class Cited:
    """A citation's place in an answer: that of its marker, or of its sentence where no marker was written."""

    start_index: int
    end_index: int


@dataclass(frozen=True)
class Stretch:
    """The place of a sentence that nothing supports."""

    start_index: int
    end_index: int


def blocks_of(text: str, cited: Sequence[Cited] = (), unsupported: Sequence[Stretch] = ()) -> list[str]:
    """Sanitised HTML of each block of markdown, in order. A text that goes on changes its last blocks only.

    Chips count the citations from 1, as the list of sources does: several may rest on one passage.
    """
    tokens = _MARKDOWN.parse(_with_signs(text, cited, unsupported))
    blocks: list[str] = []
    first = 0
    for place, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:
            written = _MARKDOWN.renderer.render(tokens[first : place + 1], _MARKDOWN.options, {})
            blocks.append(nh3.clean(written, tags=_TAGS, attributes=_ATTRIBUTES, link_rel=None))
            first = place + 1
    return blocks


_CHIP, _OPEN, _SHUT, _END = "\ue000", "\ue001", "\ue002", "\ue003"
"""Signs in the text, of characters that mean nothing to anybody; a model's own are taken out."""
_OURS = str.maketrans(dict.fromkeys((_CHIP, _OPEN, _SHUT, _END), "\ufffd"))
_SIGN = re.compile(f"{_CHIP}(\\d+){_END}|{_OPEN}|{_SHUT}")
_MARKER = re.compile(r"\[\d+\]")
_LINE_HEAD = re.compile(r"(?:\s*(?:[-*+]|\d+[.)]|#{1,6}|>)\s+)+")
"""What makes a list's item, a heading or a quote of a line: a sign before it would make it text."""
_TAGS = {
    *("p", "ul", "ol", "li", "strong", "em", "s", "code", "pre", "blockquote", "hr", "br"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    *("button", "span"),
}
_ATTRIBUTES = {
    "button": {"type", "class", "data-cite", "aria-label"},
    "span": {"class", "title"},
    "ol": {"start"},
}


def _with_signs(text: str, cited: Sequence[Cited], unsupported: Sequence[Stretch]) -> str:
    text = text.translate(_OURS)
    signs: list[tuple[int, int, str]] = []
    for index, each in enumerate(cited):
        sign = f"{_CHIP}{index}{_END}"
        if _MARKER.fullmatch(text, each.start_index, each.end_index):
            signs.append((each.start_index, each.end_index, sign))
        else:
            end = _before_bar(text, each.start_index, each.end_index)
            signs.append((end, end, sign))
    for stretch in unsupported:
        sentence = text[stretch.start_index : stretch.end_index]
        if sentence.startswith("|"):
            continue
        head = _LINE_HEAD.match(sentence)
        start = stretch.start_index + (head.end() if head else 0)
        signs += [(start, start, _OPEN), (stretch.end_index, stretch.end_index, _SHUT)]
    pieces: list[str] = []
    at = 0
    for start, end, sign in sorted(signs):
        if start < at:
            continue
        pieces += [clean(text[at:start]), sign]
        at = end
    return "".join([*pieces, clean(text[at:])])


def _before_bar(text: str, start: int, end: int) -> int:
    """In a table's row the chip stands in the last cell."""
    sentence = text[start:end].rstrip()
    return start + len(sentence) - 1 if sentence.startswith("|") and sentence.endswith("|") else end


def _show_signs(state: StateCore) -> None:
    for token in state.tokens:
        if token.type in ("fence", "code_block"):
            token.content = _SIGN.sub("", token.content)
        children: list[Token] = []
        for child in token.children or ():
            if child.type == "code_inline":
                child.content = _SIGN.sub("", child.content)
            children += _shown(child) if child.type == "text" else [child]
        if token.children is not None:
            token.children = children


def _shown(text: Token) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    for sign in _SIGN.finditer(text.content):
        tokens += [Token("text", "", 0, content=text.content[at : sign.start()]), _raw(_written(sign))]
        at = sign.end()
    return [*tokens, Token("text", "", 0, content=text.content[at:])]


def _written(sign: re.Match[str]) -> str:
    if sign[0] == _OPEN:
        return '<span class="unsupported" title="No document says this">'
    if sign[0] == _SHUT:
        return '</span><span class="visually-hidden"> (no document says this) </span>'
    index = int(sign[1])
    return (
        f'<button type="button" class="chip" data-cite="{index}" aria-label="Source {index + 1}">'
        f"{index + 1}</button>"
    )


def _raw(written: str) -> Token:
    return Token("html_inline", "", 0, content=written)


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.disable(["link", "image", "autolink", "html_inline", "html_block", "reference"])
    markdown.core.ruler.push("signs", _show_signs)
    return markdown


_MARKDOWN = _markdown()
