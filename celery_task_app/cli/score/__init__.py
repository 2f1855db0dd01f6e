"""Score a CSV file of customers: `python -m celery_task_app.cli.score customers.csv > scored.csv`. A client of the API.

The command imports nothing else of this repository: the API says which columns it needs.
"""


class ScoreError(Exception):
    """The file was not scored. The message is a sentence for the person at the terminal."""
