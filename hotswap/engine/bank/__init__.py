"""Adapters kept ready for a model: by name and version, on the disk, in host memory and on its device."""
