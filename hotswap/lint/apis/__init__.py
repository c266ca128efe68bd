"""What functions, classes and methods of libraries do to a model: one row an API."""
