"""How documents come in: parse, chunk, pipeline, jobs."""
