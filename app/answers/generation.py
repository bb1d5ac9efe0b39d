"""What a prompt must know of the model that reads it: its context, how it counts, and its system role."""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Protocol

import orjson
from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from serving.generation.gateway import Reply, UpstreamModel
from serving.protocols import Lane, ServingError

CHAT_PATH = "/v1/chat/completions"
TOKENIZE_PATH = "/tokenize"
LONGEST_ASK_S = 0.5
SAMPLE_CHARS = 4_000
LEAST_SAMPLE_CHARS = 400
"""Less text says too little of how a model counts a tenant's language."""
CHARS_A_TOKEN = 3.0
"""Of ASCII; any other character is taken for a token. English has 4 to 5 and Cyrillic 2 to 3, so that without an
engine that counts, too little text is shown and not too much.
"""
MARGIN = 1.1
"""On counts that go by a ratio: a table has more tokens than the prose beside it."""
MOST_RATIOS = 1_024
MESSAGE_TOKENS = 16
"""What a chat template puts around a message, at most."""

IMAGE, AUDIO = "image_url", "input_audio"
_PARTS = {IMAGE: "vision_config", AUDIO: "audio_config"}

_SAYS_SYSTEM = "What the system says."
_SAYS_USER = "What the person says."
_NO_SYSTEM_ROLE = re.compile(
    r"gemma(?!-?4(?:\D|$))|mistral-7b-instruct-v0\.[12]|mixtral-8x\d+b-instruct-v0\.1|deepseek-r1",
    re.IGNORECASE,
)
"""Families whose chat template refuses a system message (Gemma to 2, Mistral's first), hides it in the first of the
person's (Gemma 3), or that are not trained to heed one (DeepSeek R1's model card).
"""


SURELY = 1.5
"""By so much a prompt must exceed a model's context for its refusal, where its tokens are only estimated."""


class PromptTooLong(Exception):
    """The messages alone do not fit into the model's context."""

    param = "messages"

    def __init__(self, count: int, limit: int, *, is_exact: bool) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, your messages have "
            f"{'' if is_exact else 'about '}{count} tokens. Please shorten them."
        )


class PartNotTaken(Exception):
    """The model reads no pictures, or no sound."""

    param = "messages"

    def __init__(self, model: str, kind: str) -> None:
        super().__init__(
            f"The model '{model}' takes no parts of type '{kind}': remove them, or name a model that does."
        )


class Generator(Protocol):
    """An engine that speaks OpenAI's chat completions: the gateway, or a scripted one in tests."""

    def send(
        self,
        path: str,
        body: bytes,
        *,
        model: str,
        tenant: str,
        lane: Lane,
        prefix: bytes,
        deadline_s: float | None,
    ) -> AbstractAsyncContextManager[Reply]: ...

    def must_have_room(self, model: str, *, tenant: str, lane: Lane, deadline_s: float | None) -> None: ...

    async def models(self) -> Sequence[UpstreamModel]: ...


@dataclass(frozen=True)
class GenerationModel:
    """A model that answers, as one tenant's prompts see it."""

    count_tokens: Callable[[str], int]
    """Of a text without special tokens: exactly where the model's tokenizer is on this machine."""
    max_tokens: int | None
    """Of prompt and answer together; None where the engine does not tell."""
    takes_system: bool
    """Whether its chat template has a system role."""
    counts_exactly: bool = False

    def may_overflow(self, texts: Sequence[str], *, answer_tokens: int) -> bool:
        """False where these texts and an answer surely fit: no tokenizer makes more tokens of a text than it has bytes.

        So most prompts need not be counted.
        """
        if self.max_tokens is None:
            return False
        most = sum(len(text.encode(errors="replace")) + MESSAGE_TOKENS for text in texts)
        return most + answer_tokens + MESSAGE_TOKENS > self.max_tokens

    def room(self, texts: Sequence[str], *, answer_tokens: int) -> int:
        """Tokens that are left beside these messages' texts and an answer, where a limit is known."""
        assert self.max_tokens is not None
        taken = sum(self.count_tokens(text) + MESSAGE_TOKENS for text in texts)
        return self.max_tokens - answer_tokens - taken - MESSAGE_TOKENS


@dataclass(frozen=True)
class _Folder:
    """What a model's folder tells."""

    tokenizer: Tokenizer | None
    takes_system: bool | None
    not_taken: frozenset[str] = frozenset()
    """Types of content parts that it cannot read, as far as its configuration tells."""


class GenerationModels:
    """Knows each model that an engine serves. `folders` has those that lie on this machine, by their names there.

    A model without a folder counts by a ratio to the text's length, which its engine is asked for once a tenant,
    by vLLM's /tokenize; or by a careful guess, if the engine has no such route.
    """

    def __init__(self, generator: Generator, folders: Mapping[str, Path]) -> None:
        self._generator = generator
        self._folders = folders
        self._read: dict[str, _Folder] = {}
        self._ratios: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def of(self, model: str, *, tenant: str, sample: str) -> GenerationModel:
        """`sample` is of the text that is to be counted. Raises what the generator raises for its list of models."""
        folder = await self._folder(model)
        served = {each.id: each.max_model_len for each in await self._generator.models()}
        if folder.tokenizer is not None:
            count_tokens = partial(_count, folder.tokenizer)
        else:
            count_tokens = partial(_estimate, await self._ratio(model, tenant, sample))
        return GenerationModel(
            count_tokens=count_tokens,
            max_tokens=served.get(model),
            takes_system=folder.takes_system is not False and not _NO_SYSTEM_ROLE.search(model),
            counts_exactly=folder.tokenizer is not None,
        )

    async def must_fit(self, model: str, *, tenant: str, texts: Sequence[str]) -> None:
        """Raises PromptTooLong. What may fit is left to the engine, which counts again anyway."""
        limit = {each.id: each.max_model_len for each in await self._generator.models()}.get(model)
        if limit is None or sum(map(len, texts)) < CHARS_A_TOKEN * limit:
            return
        reader = await self.of(model, tenant=tenant, sample=max(texts, key=len))
        count = await asyncio.to_thread(lambda: sum(map(reader.count_tokens, texts)))
        if count > limit * (1 if reader.counts_exactly else SURELY):
            raise PromptTooLong(count, limit, is_exact=reader.counts_exactly)

    async def must_take(self, model: str, kinds: Collection[str]) -> None:
        """Raises PartNotTaken for types of content parts that the model is known not to read."""
        folder = await self._folder(model)
        for kind in kinds:
            if kind in folder.not_taken:
                raise PartNotTaken(model, kind)

    async def takes_images(self, model: str) -> bool | None:
        """None where its configuration is not on this machine."""
        folder = await self._folder(model)
        return None if folder.tokenizer is None else IMAGE not in folder.not_taken

    async def _folder(self, model: str) -> _Folder:
        if model not in self._read:
            path = self._folders.get(model)
            self._read[model] = (
                _Folder(None, None) if path is None else await asyncio.to_thread(_read_folder, path)
            )
        return self._read[model]

    async def _ratio(self, model: str, tenant: str, sample: str) -> float:
        """Tokens that the model counts, by those of the guess."""
        key = (tenant, model)
        if key in self._ratios:
            self._ratios.move_to_end(key)
            return self._ratios[key]
        if len(sample) < LEAST_SAMPLE_CHARS:
            return 1.0
        sample = sample[:SAMPLE_CHARS]
        told = await self._ask(model, tenant, sample)
        self._ratios[key] = 1.0 if told is None else MARGIN * told / _estimate(1.0, sample)
        if len(self._ratios) > MOST_RATIOS:
            self._ratios.popitem(last=False)
        return self._ratios[key]

    async def _ask(self, model: str, tenant: str, text: str) -> int | None:
        body = orjson.dumps({"model": model, "prompt": text, "add_special_tokens": False})
        try:
            async with self._generator.send(
                TOKENIZE_PATH,
                body,
                model=model,
                tenant=tenant,
                lane=Lane.INTERACTIVE,
                prefix=b"",
                deadline_s=LONGEST_ASK_S,
            ) as reply:
                raw = await reply.read()
                return int(orjson.loads(raw)["count"]) if reply.status == 200 else None
        except (ServingError, ValueError, KeyError, TypeError):
            return None


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def _estimate(ratio: float, text: str) -> int:
    ascii_chars = len(text.encode("ascii", "ignore"))
    return ceil(ratio * (ascii_chars / CHARS_A_TOKEN + len(text) - ascii_chars))


def _read_folder(folder: Path) -> _Folder:
    tokenizer = folder / "tokenizer.json"
    template = _chat_template(folder)
    return _Folder(
        tokenizer=Tokenizer.from_file(str(tokenizer)) if tokenizer.is_file() else None,
        takes_system=None if template is None else takes_system(template),
        not_taken=_not_taken(folder / "config.json"),
    )


def _not_taken(config: Path) -> frozenset[str]:
    """A model that reads pictures or sound says with which parts of it, in transformers' form."""
    told = orjson.loads(config.read_bytes()) if config.is_file() else None
    if told is None:
        return frozenset()
    return frozenset(kind for kind, part in _PARTS.items() if part not in told)


def _chat_template(folder: Path) -> str | None:
    alone, within = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if alone.is_file():
        return alone.read_text("utf-8")
    told = orjson.loads(within.read_bytes()).get("chat_template") if within.is_file() else None
    # Some models come with several, by name.
    named = {each["name"]: each["template"] for each in told} if isinstance(told, list) else {"default": told}
    return named.get("default")


def takes_system(template: str) -> bool | None:
    """Whether a chat template, in transformers' form, shows a system message apart from the person's.

    None for a template that is not understood.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _: ""
    messages = [{"role": "system", "content": _SAYS_SYSTEM}, {"role": "user", "content": _SAYS_USER}]
    try:
        shown = environment.from_string(template).render(messages=messages, add_generation_prompt=True)
    except TemplateSyntaxError:
        return None
    except (TemplateError, TypeError, ValueError):
        return False
    _, said, between = shown.partition(_SAYS_USER)[0].partition(_SAYS_SYSTEM)
    return bool(said) and bool(between.strip())


def _refuse(message: str) -> None:
    raise TemplateError(message)
