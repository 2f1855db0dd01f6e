"""Real servers and processes, and typed calls of the service, for tests and benchmarks."""
