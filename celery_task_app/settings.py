"""The settings: the only reader of the environment. Every default works on a laptop."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The frozen settings of a process; a field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    broker_uri: str = "amqp://guest:guest@localhost:5672//"
    """Address of the broker: `amqp://…` (RabbitMQ, the durable choice) or `redis://…` (Valkey or Redis)."""

    backend_uri: str = "redis://localhost:6379/0"
    """Address of the result store: Redis or Valkey."""

    model_path: Path = Path(__file__).parent / "ml" / "artifacts" / "churn.joblib"
    """The model file; the worker verifies it with the manifest beside it (the same name, `.json`), if there is one."""

    warm_up: bool = False
    """Load the model before the pool processes are forked, so that they share its memory; else each loads it."""

    worker_concurrency: int = Field(default=1, ge=1)
    """Pool processes of one worker."""

    remote_control: bool = False
    """Answer Celery's remote control (`celery inspect`, Flower), with which any program on the broker can stop it."""

    deadline_s: int = Field(default=3_600, ge=1)
    """Seconds until an accepted prediction expires if it is not computed; a client may ask for fewer."""

    result_ttl_s: int = Field(default=86_400, ge=1)
    """Seconds that a result can be fetched; afterwards its id is unknown."""

    max_wait_s: int = Field(default=25, ge=0)
    """Longest wait of a request with `Prefer: wait`, in seconds; stay below the idle timeout of your proxies."""

    max_waiters: int = Field(default=1_000, ge=0)
    """Most requests that one API process holds for `Prefer: wait`; beyond it the answer comes at once."""

    idempotency_ttl_s: int = Field(default=86_400, ge=1)
    """Seconds that an Idempotency-Key stays bound to its prediction."""

    group_max: int = Field(default=256, ge=1, le=1_000)
    """Most predictions in one message."""

    waiting_room: int = Field(default=4_096, ge=1)
    """Most predictions of one API process that wait to be published; beyond it the answer is 429."""

    queue_high_water: int = Field(default=10_000, ge=1)
    """Most predictions that wait in the queue, by estimate; beyond it the answer is 429."""

    api_keys: str = Field(default="", pattern=r"^([0-9a-fA-F]{64}(\s*,\s*[0-9a-fA-F]{64})*)?$")
    """SHA-256 digests of the API keys, in hex, separated by commas; if empty, no key is needed."""

    body_max_bytes: int = Field(default=16_384, ge=1_024)
    """Longest body of `POST /churn/predict`, in bytes; beyond it the answer is 413."""

    head_timeout_s: int = Field(default=10, ge=1)
    """Seconds until the API closes a connection that has not sent the whole head of a request."""

    body_timeout_s: int = Field(default=10, ge=1)
    """Seconds that a body may take to arrive, besides one second for each 8 KiB; beyond it the answer is 408."""

    batch_max_bytes: int = Field(default=67_108_864, ge=1)
    """Longest body of a batch, in bytes."""

    batch_max_rows: int = Field(default=200_000, ge=1)
    """Most rows of a batch."""

    batch_high_water: int = Field(default=1_000_000, ge=1)
    """Most rows that wait in the queue of batches, by estimate; beyond it the answer is 429."""

    batch_chunk_rows: int = Field(default=1_000, ge=1, le=5_000)
    """Rows in one message of a batch; a single prediction waits behind at most two such messages."""


settings = Settings()
