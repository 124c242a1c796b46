"""Messages of graphs and of KServe; the generated code is committed beside its source."""
