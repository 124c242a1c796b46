"""Downloads and archives, for engines and models alike."""
