"""How fast: swaps beside PEFT's functions, and what a recompile costs."""
