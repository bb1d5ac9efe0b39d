"""LlamaIndex's OpenAILike: chat whole and streamed, with a tool, legacy completion, embeddings. Prints JSON."""

import json
import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

BASE_URL, KEY = os.environ["STRONGROOM_URL"] + "/v1", os.environ["STRONGROOM_KEY"]  # noqa: TID251
QUESTION = [ChatMessage(content="Who is the harbour master?")]


def ring(who: str) -> str:
    """Rings somebody up."""
    return who


llm = OpenAILike(
    api_base=BASE_URL, api_key=KEY, model="rag/harbour", is_chat_model=True, is_function_calling_model=True
)
plain = OpenAILike(api_base=BASE_URL, api_key=KEY, model="scripted", is_chat_model=False)
embedding = OpenAILikeEmbedding(api_base=BASE_URL, api_key=KEY, model_name="all-MiniLM-L6-v2")
called = llm.chat_with_tools([FunctionTool.from_defaults(ring)], user_msg="Ring up the harbour master")
calls = llm.get_tool_calls_from_response(called)
print(
    json.dumps(
        {
            "whole": llm.chat(QUESTION).message.content,
            "streamed": "".join(each.delta or "" for each in llm.stream_chat(QUESTION)),
            "called": [[call.tool_name, call.tool_kwargs] for call in calls],
            "completed": plain.complete("Once").text,
            "dimensions": [len(each) for each in embedding.get_text_embedding_batch(["a key", "a hall"])],
        }
    )
)
