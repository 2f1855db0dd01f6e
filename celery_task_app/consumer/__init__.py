"""The worker's consumer: our additions to Celery's own. Only the worker process imports this package."""
