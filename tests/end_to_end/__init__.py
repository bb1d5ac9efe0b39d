"""The whole stack as a stranger uses it: real processes, real models, real engine."""
