"""State machines over a subject: the steps that they take, and the script of a failure."""
