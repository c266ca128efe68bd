"""The formats of adapter files: what each tensor of a file is."""
