"""The model: training, files and predictions. It knows no Celery, no HTTP and no environment."""
