"""What a person types: the ``ovms-plugin`` command."""
