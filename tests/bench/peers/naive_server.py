"""The server that most people write first: FastAPI, and sentence-transformers in the thread pool, without batching."""

import argparse
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class EmbedRequest(BaseModel):
    """The body of POST /embed."""

    texts: list[str]


def create_app(model: Any) -> FastAPI:
    app = FastAPI()

    @app.post("/embed")
    def embed(body: EmbedRequest) -> list[list[float]]:
        rows: list[list[float]] = model.encode(body.texts, normalize_embeddings=True).tolist()
        return rows

    @app.get("/health")
    async def health() -> None:
        return None

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    model = SentenceTransformer(options.model, device="cpu")
    uvicorn.run(create_app(model), port=options.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
