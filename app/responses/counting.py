"""How many tokens a request's input has: asked of the engine, which alone knows its chat template."""

import orjson

from app.answers.generation import TOKENIZE_PATH
from app.answers.prompt import as_prefix
from app.errors import CannotCount
from app.responses.engine_turn import ask
from app.responses.reading import read_asked
from app.responses.request import Context
from app.routes.chat import generation_model
from app.services import Services
from retrieval.scope import Scope
from retrieval.stages import Stages
from retrieval.together import in_thread
from serving.protocols import Lane

LONGEST_S = 10.0


async def count_tokens(services: Services, scope: Scope, body: Context) -> int:
    """Of the prompt as the engine would read it, with the passages that would be found. Raises CannotCount."""
    asked = await in_thread(read_asked, services, scope, body)
    model = await generation_model(services, scope, body.model or "")
    question = await ask(services, scope, asked, model=model, lane=Lane.INTERACTIVE, stages=Stages())
    messages = question.request["messages"]
    told = {
        name: question.request[name] for name in ("model", "messages", "tools") if name in question.request
    }
    async with services.gateway.send(
        TOKENIZE_PATH,
        orjson.dumps(told),
        model=question.model,
        tenant=scope.tenant_id,
        lane=Lane.INTERACTIVE,
        prefix=as_prefix(messages),
        deadline_s=LONGEST_S,
    ) as reply:
        raw = await reply.read()
        if reply.status != 200:
            raise CannotCount
        return int(orjson.loads(raw)["count"])
