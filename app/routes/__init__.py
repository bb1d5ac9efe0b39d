"""HTTP routes, one module a resource: each parses, calls one function, shapes the reply."""
