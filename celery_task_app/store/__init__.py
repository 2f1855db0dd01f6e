"""The result store: the only package that uses redis, names keys and loads Lua scripts."""
