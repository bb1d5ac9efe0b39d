"""Generation engines: the gateway before them, and how one is started."""
