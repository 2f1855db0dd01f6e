"""Other servers for the same model, each with batching; `make bench-peers` installs them in their own environment."""
