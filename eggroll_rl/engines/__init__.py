"""What answers for a population and learns from its fitness, behind the protocol in ``base``."""
