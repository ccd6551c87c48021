"""Accuracy of one model on one task, with a confidence interval, and pass@k."""
