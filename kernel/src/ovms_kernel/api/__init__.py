"""What extensions may import, one module for each kind of author; everything else may change without notice."""
