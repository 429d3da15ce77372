"""The engine that all tasks share; it knows none of them."""
