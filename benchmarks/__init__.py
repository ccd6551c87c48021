"""Tools of the repository that measure and stress the package; they are not in the wheel."""
