"""How good search and answers are, measured through the product's own API: `strongroom eval`."""
