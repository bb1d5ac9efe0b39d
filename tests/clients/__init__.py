"""Other people's clients, as they are, against the served api role."""
