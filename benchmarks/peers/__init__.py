"""Other ways to serve the same model over HTTP, each in its best form; installed apart: `make bench-peers`."""
