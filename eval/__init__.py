"""Accuracy and pass@k with confidence intervals, equal-time comparison, and the throughput benchmark."""
