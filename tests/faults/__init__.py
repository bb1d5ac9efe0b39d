"""What breaks: kills, huge files, parsers gone wild, with the roles as processes and embeddings that cost nothing."""
