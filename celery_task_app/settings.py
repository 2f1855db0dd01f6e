"""The settings, and the only reader of the environment. Every default works on a laptop; nothing is required."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One frozen set of settings for a process; a field's environment variable has its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    broker_uri: str = "amqp://guest:guest@localhost:5672//"
    """Where tasks are queued: `amqp://…` (RabbitMQ, the durable choice) or `redis://…` (Valkey or Redis)."""

    backend_uri: str = "redis://localhost:6379/0"
    """Where predictions are kept until they are fetched: Redis or Valkey."""

    model_path: Path = Path(__file__).parent / "ml" / "artifacts" / "churn.joblib"
    """The model file; a manifest of the same name ending in `.json` beside it is verified if it is there."""

    warm_up: bool = False
    """Load the model when a worker process starts, not at its first prediction."""

    worker_concurrency: int = Field(default=1, ge=1)
    """Processes that predict, in one worker."""

    deadline_s: int = Field(default=3_600, ge=1)
    """Seconds within which an accepted prediction is computed, or it has expired; a client may ask for fewer."""

    result_ttl_s: int = Field(default=86_400, ge=1)
    """Seconds that the end of a prediction can be fetched; then its id is unknown."""

    max_wait_s: int = Field(default=25, ge=0)
    """Most seconds that a request with `Prefer: wait` is held; below the idle time-out of usual proxies."""

    max_waiters: int = Field(default=1_000, ge=0)
    """Most requests that one API process holds; beyond it the answer comes at once."""

    idempotency_ttl_s: int = Field(default=86_400, ge=1)
    """Seconds that an Idempotency-Key stands for the prediction that it was first sent with."""

    group_max: int = Field(default=256, ge=1, le=1_000)
    """Most customers that one message carries."""

    waiting_room: int = Field(default=4_096, ge=1)
    """Most customers that wait in one API process to be published; beyond it the answer is 429."""

    queue_high_water: int = Field(default=10_000, ge=1)
    """Customers that wait in the queue, by estimate; if there are more, the answer is 429."""

    api_keys: str = Field(default="", pattern=r"^([0-9a-fA-F]{64}(\s*,\s*[0-9a-fA-F]{64})*)?$")
    """SHA-256 digests, in hex and with commas between, of the keys with which the API may be used; empty: by all."""

    body_max_bytes: int = Field(default=16_384, ge=1_024)
    """Longest body of `POST /churn/predict`, in bytes; beyond it the answer is 413."""

    batch_max_bytes: int = Field(default=67_108_864, ge=1)
    """Most bytes that the body of a batch may have."""

    batch_max_rows: int = Field(default=200_000, ge=1)
    """Most customers that a batch may have."""

    batch_high_water: int = Field(default=1_000_000, ge=1)
    """As `QUEUE_HIGH_WATER`, of batches: they have a queue of their own."""

    batch_chunk_rows: int = Field(default=1_000, ge=1, le=5_000)
    """Customers that one message of a batch carries; a single prediction waits for two of these at most."""


settings = Settings()
