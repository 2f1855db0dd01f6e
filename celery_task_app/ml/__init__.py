"""The model: how it is made and how it is asked. Knows no Celery, no HTTP, no environment."""
