"""The engine: installed, started, watched, asked."""
