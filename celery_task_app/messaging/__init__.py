"""The queue: message schemas, publishing, and the transport for Valkey and Redis as the broker."""
