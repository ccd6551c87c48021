"""Several methods on one recipe for equal time, and what may be concluded."""
