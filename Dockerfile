# Two images of one tree: the API without an ML library, the worker without a web framework.
# tests/integration/test_images.py imports each process from the files that its stage copies.
FROM python:3.13-slim AS base
ENV PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --system --no-create-home --uid 10001 churn
# The packages of docs/tracing.md: docker-compose build --build-arg EXTRA=tracing
ARG EXTRA=
COPY requirements/tracing.txt requirements/
RUN [ -z "$EXTRA" ] || pip install --no-cache-dir --no-deps --require-hashes -r "requirements/$EXTRA.txt"

FROM base AS api
COPY requirements/api.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/api.txt
COPY celery_task_app/ml/__init__.py celery_task_app/ml/schema.py celery_task_app/ml/
COPY celery_task_app/store celery_task_app/store
COPY celery_task_app/messaging celery_task_app/messaging
COPY celery_task_app/observability celery_task_app/observability
COPY celery_task_app/__init__.py celery_task_app/errors.py celery_task_app/settings.py celery_task_app/worker.py celery_task_app/
COPY api api
COPY app.py models.py ./
USER churn
EXPOSE 8000
# 20 s: a client that never completes its request delays a stop no longer.
CMD ["uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]

FROM base AS worker
# LightGBM's wheel needs the system's OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements/worker.txt requirements/
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/worker.txt
COPY celery_task_app celery_task_app
USER churn
CMD ["celery", "-A", "celery_task_app.worker", "worker", "-l", "info"]
