"""Commands for a person: `make run`, and the client that scores a file."""
