"""Models as a service: batching, embedding, reranking, and the gateway to generation engines."""
