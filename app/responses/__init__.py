"""The Responses surface: its requests and stream, as a translation of the chat journey, and what is kept."""
