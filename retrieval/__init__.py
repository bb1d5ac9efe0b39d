"""What is stored and found: tables, catalog queries, indexes, search, passages."""
