"""Celery's configuration for Flower: the queues that its broker page lists."""

from kombu import Queue

task_default_queue = "churn"
task_queues = [Queue("churn"), Queue("churn.batch"), Queue("churn.dead")]
event_queue_exclusive = True  # RabbitMQ deprecates queues that are neither durable nor exclusive
