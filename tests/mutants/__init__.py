"""Faulty engines, one small defect each, and the law that each of them breaks."""
