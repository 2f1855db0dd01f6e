# Two images of one tree: the API, which has no ML library, and the worker, which has no web framework.
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --system --no-create-home --uid 10001 churn

FROM base AS api
COPY requirements/api.txt requirements/
RUN pip install --no-cache-dir -r requirements/api.txt
COPY app.py models.py ./
COPY celery_task_app celery_task_app
USER churn
EXPOSE 8000
# A client that never ends its request holds up a stop for no longer than this.
CMD ["uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]

FROM base AS worker
# LightGBM's wheel expects the system's OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements/worker.txt requirements/
RUN pip install --no-cache-dir -r requirements/worker.txt
COPY celery_task_app celery_task_app
USER churn
CMD ["celery", "-A", "celery_task_app.worker", "worker", "-l", "info"]
