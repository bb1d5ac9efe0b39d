"""Spoken answers: asked of the models that their owner says speak, whose engine does the rest; others refuse."""

from collections.abc import Collection, Mapping
from typing import Any

from app.errors import BadRequest

MENTIONED = b'"audio"'
"""What every request that asks for sound has in it."""


def check_sound(body: Mapping[str, Any], *, speaking: Collection[str], is_grounded: bool) -> None:
    """`body` is already of its form. Raises BadRequest where nobody would speak."""
    is_asked = "audio" in (body.get("modalities") or ())
    spoken = [place for place, message in enumerate(body["messages"]) if message.get("audio")]
    if is_asked and not body.get("audio"):
        raise BadRequest("audio: an answer in sound needs a voice and a format.", param="audio")
    if body.get("audio") and not is_asked:
        raise BadRequest('audio: sound comes by modalities ["text", "audio"].', param="audio")
    param = "modalities" if is_asked else f"messages[{spoken[0]}].audio" if spoken else None
    if param is None:
        return
    if is_grounded:
        raise BadRequest(f"{param}: answers from documents are text, which is checked.", param=param)
    if body["model"] not in speaking:
        raise BadRequest(
            f"{param}: the model '{body['model']}' does not speak. Those that do stand in the setting engine.speaking: "
            f"{', '.join(sorted(speaking)) or 'none'}.",
            param=param,
        )
