"""``hotswap verify``: what is asked of it, the processes that it starts, and the demo."""
