"""The worker process, and the modules that the worker and the API share: settings, errors, messaging and store."""
