"""Other servers for the same work, each in an environment of its own, to be measured side by side with ours."""
