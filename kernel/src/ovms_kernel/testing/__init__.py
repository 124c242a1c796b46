"""For authors of extensions: a pytest plugin and what it is made of."""
