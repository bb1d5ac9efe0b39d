"""The neural models themselves; the only package that imports torch and sentence-transformers."""
