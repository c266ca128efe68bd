"""What hotswap verify is asked for, the processes that it starts, and the demo."""
