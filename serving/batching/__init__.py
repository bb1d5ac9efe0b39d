"""Joins concurrent requests for one model into batches, people first."""
