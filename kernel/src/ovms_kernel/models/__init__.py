"""Models on disk and in the engine."""
