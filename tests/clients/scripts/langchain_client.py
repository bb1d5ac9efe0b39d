"""LangChain's chat model and embeddings: whole, streamed, with a tool, in a schema. Prints JSON."""

import json
import os

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE_URL, KEY = os.environ["STRONGROOM_URL"] + "/v1", os.environ["STRONGROOM_KEY"]  # noqa: TID251
QUESTION = "Who is the harbour master?"


class Person(BaseModel):
    """Somebody."""

    name: str


def ring(who: str) -> str:
    """Rings somebody up."""
    return who


chat = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model="rag/harbour", stream_usage=True)
embeddings = OpenAIEmbeddings(
    base_url=BASE_URL, api_key=KEY, model="all-MiniLM-L6-v2", check_embedding_ctx_length=False
)
whole = chat.invoke(QUESTION)
chunks = list(chat.stream(QUESTION))
called = chat.bind_tools([ring]).invoke("Ring up the harbour master")
person = chat.with_structured_output(Person).invoke("In a schema: who is the harbour master?")
print(
    json.dumps(
        {
            "whole": whole.content,
            "tokens": (whole.usage_metadata or {})["total_tokens"],
            "streamed": "".join(chunk.text for chunk in chunks),
            "streamed_tokens": sum((chunk.usage_metadata or {}).get("total_tokens", 0) for chunk in chunks),
            "called": [[call["name"], call["args"]] for call in called.tool_calls],
            "person": person.name,
            "dimensions": [len(each) for each in embeddings.embed_documents(["a key", "a hall"])],
        }
    )
)
