"""An adapter as it was given, read and laid out as the bytes that will be in place."""
