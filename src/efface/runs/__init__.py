"""One run on disk: what it asks, its plan, its lock, how far it is."""
