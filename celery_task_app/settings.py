"""The settings: the only reader of the environment. Every default works on a laptop."""

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_EMPTY_DIGEST = hashlib.sha256(b"").hexdigest()
_UNSUPPORTED = {
    "sentinel": "Redis Sentinel is supported for the result store only",
    "unix": "a Unix socket is not supported",
    "redis+socket": "a Unix socket is not supported",
    "socket": "a Unix socket is not supported",
    "redis+cluster": "Redis Cluster is not supported",
    "rediscluster": "Redis Cluster is not supported",
}
# Celery and redis-py write the same values in two ways.
_CERT_REQS = {"CERT_REQUIRED": "required", "CERT_OPTIONAL": "optional", "CERT_NONE": "none"}
_TLS_PARAMETERS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_MASTER_NAME = "mymaster"  # of the example configuration of Redis
_SENTINEL_PARAMETERS = {"master_name", "sentinel_username", "sentinel_password", *_TLS_PARAMETERS}
# Celery prefers these variables to its configuration, so the service would use other servers than its settings say.
_OF_CELERY = {
    "CELERY_BROKER_URL": "BROKER_URI",
    "CELERY_BROKER_READ_URL": "BROKER_URI",
    "CELERY_BROKER_WRITE_URL": "BROKER_URI",
    "CELERY_RESULT_BACKEND": "BACKEND_URI",
}
# Each of these variables of OpenTelemetry asks for traces.
_OF_TRACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_BATCH_SIZE, _QUEUE_SIZE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE"
_NUMBERS_OF_TRACES = ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT", _BATCH_SIZE, _QUEUE_SIZE)
_SAMPLERS = [start + end for start in ("parentbased_", "") for end in ("always_on", "always_off", "traceidratio")]
_TRACING_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class Settings(BaseSettings):
    """The frozen settings of a process; a field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    broker_uri: str = "amqp://guest:guest@localhost:5672//"
    """Address of the broker: `amqp://…` (RabbitMQ, the durable choice) or `redis://…` (Valkey or Redis); `amqps` and
    `rediss` for TLS. Several addresses of a RabbitMQ cluster are separated by semicolons; give each its port."""

    backend_uri: str = "redis://localhost:6379/0"
    """Address of the result store: Redis or Valkey, `redis://…`, or `rediss://…` for TLS; or that of its Sentinels:
    `sentinel://:PASSWORD@host:26379;sentinel://host2:26379/0?master_name=mymaster`."""

    result_replicas: int = Field(default=0, ge=0, le=10)
    """Replicas of the result store that must confirm a QUEUED marker before the 202, and an outcome before its message
    is acknowledged (`WAIT`). 0 waits for none: a fail-over may then lose the writes of about a second."""

    model_path: Path = Path(__file__).parent / "ml" / "artifacts" / "churn.joblib"
    """The model file; the worker verifies it with the manifest beside it (the same name, `.json`), if there is one."""

    model_load_timeout_s: int = Field(default=120, ge=1)
    """Seconds in which a process of the worker must load the model; beyond it the worker stops as `failed`."""

    warm_up: bool = True
    """Load the model before the pool processes are forked, so that they share its memory; else each loads it. Set it to
    false for a library that starts threads when it loads a model: they do not survive a fork."""

    worker_concurrency: int = Field(default=1, ge=1, le=1_000)
    """Pool processes of one worker."""

    remote_control: bool = False
    """Answer Celery's remote control (`celery inspect`, Flower), with which any program on the broker can stop it."""

    metrics_port: int = Field(default=0, ge=0, le=65_534)
    """Port of the metrics (Prometheus) of an API process; a worker uses the next port. 0 switches them off; `make run`
    and docker-compose switch them on. Two processes cannot share a port, so `uvicorn --workers` is refused with it."""

    metrics_host: str = "127.0.0.1"
    """Address on which the metrics are served; `0.0.0.0` in a container whose network is protected."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged: `debug`, `info`, `warning` or `error`. A worker without it uses Celery's `-l`."""

    log_format: Literal["text", "json"] = "text"
    """Form of the log lines: `text` with key=value, or `json`."""

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

    api_keys: str = ""
    """SHA-256 digests of the API keys, in hex, separated by commas; if empty, no key is needed."""

    body_max_bytes: int = Field(default=16_384, ge=1_024)
    """Longest body of `POST /churn/predict`, in bytes; beyond it the answer is 413."""

    head_timeout_s: int = Field(default=10, ge=1)
    """Seconds until the API closes a connection that has not sent the whole head of a request."""

    body_timeout_s: int = Field(default=10, ge=1)
    """Seconds over which a body must arrive at 8 KiB a second, unless it is complete; else the answer is 408."""

    batch_max_bytes: int = Field(default=67_108_864, ge=1)
    """Longest body of a batch, in bytes."""

    batch_max_rows: int = Field(default=200_000, ge=1)
    """Most rows of a batch."""

    batch_high_water: int = Field(default=1_000_000, ge=1)
    """Most rows that wait in the queue of batches, by estimate; beyond it the answer is 429."""

    batch_chunk_rows: int = Field(default=1_000, ge=1, le=5_000)
    """Rows in one message of a batch; a single prediction waits behind at most two such messages."""

    @model_validator(mode="before")
    @classmethod
    def _strip(cls, values: Any) -> Any:
        """Remove blanks and line ends around each value: a secret in a file often ends with one."""
        return {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, text: Any) -> Any:
        return text.lower() if isinstance(text, str) else text

    @model_validator(mode="after")
    def _refuse_variables_of_celery(self) -> "Settings":
        for name, ours in _OF_CELERY.items():
            if os.environ.get(name):
                raise ValueError(f"{name} is set, and Celery would use it instead of {ours}: unset it")
        return self

    @property
    def is_tracing_on(self) -> bool:
        """Whether variables of OpenTelemetry ask for traces; its SDK reads the rest of them."""
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return False
        exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
        return exporter != "none" and any(map(os.environ.get, _OF_TRACES))

    @property
    def span_queue_size(self) -> int:
        """Spans that wait for the collector at most, in each process."""
        return int(os.environ.get(_QUEUE_SIZE) or 2048)

    @model_validator(mode="after")
    def _refuse_traces_that_cannot_be_exported(self) -> "Settings":
        if not self.is_tracing_on:
            return self
        for name, needed in (("OTEL_TRACES_EXPORTER", "otlp"), *((name, "http/protobuf") for name in _PROTOCOLS)):
            if os.environ.get(name, "").strip() not in ("", needed):
                raise ValueError(f"{name} must be {needed}, or unset: this service exports traces in no other way")
        for name in _OF_TRACES[:2]:
            if not (os.environ.get(name) or "http://").strip().startswith(("http://", "https://")):
                raise ValueError(f"{name} must begin with http:// or https://")
        for name in _HEADERS:  # the SDK would log a header that it cannot read
            if not all("=" in header for header in filter(None, (os.environ.get(name) or "").split(","))):
                raise ValueError(f"{name} must be name=value, and several separated by commas")
        if missing := [name for name in _TRACING_PACKAGES if not _is_installed(name)]:
            raise ValueError(
                f"{next(filter(os.environ.get, _OF_TRACES))} asks for traces, and {missing[0]} is not installed: "
                "pip install --no-deps --require-hashes -r requirements/tracing.txt"
            )
        return self

    @model_validator(mode="after")
    def _refuse_traces_that_cannot_be_created(self) -> "Settings":
        """Name the variable; the SDK would stop with a traceback, or trace every request."""
        if unknown := _unknown_propagators():  # FastAPI reads it without traces too
            raise ValueError(f"OTEL_PROPAGATORS has {unknown[0]!r}, which is not installed: use tracecontext, baggage")
        if not self.is_tracing_on:
            return self
        for name in _NUMBERS_OF_TRACES:
            if not ((text := os.environ.get(name) or "1").isdecimal() and int(text)):
                raise ValueError(f"{name} must be a whole number from 1, or unset")
        if (batch := int(os.environ.get(_BATCH_SIZE) or 512)) > self.span_queue_size:
            raise ValueError(f"{_BATCH_SIZE} ({batch}) must not be above {_QUEUE_SIZE} ({self.span_queue_size})")
        if (os.environ.get("OTEL_TRACES_SAMPLER") or "always_on").lower() not in _SAMPLERS:
            raise ValueError(f"OTEL_TRACES_SAMPLER must be one of {', '.join(_SAMPLERS)}")
        if not _is_share(os.environ.get("OTEL_TRACES_SAMPLER_ARG") or "1"):
            raise ValueError("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1")
        return self

    @field_validator("broker_uri")
    @classmethod
    def _check_broker_uri(cls, text: str) -> str:
        uris = [_check_uri(uri, ("amqp", "amqps", "redis", "rediss")) for uri in text.split(";")]
        schemes = {uri.partition("://")[0] for uri in uris}
        if len(uris) > 1 and (len(schemes) > 1 or not schemes <= {"amqp", "amqps"}):
            raise ValueError("several addresses must all be of one RabbitMQ cluster")
        return ";".join(uris)

    @field_validator("backend_uri")
    @classmethod
    def _check_backend_uri(cls, text: str) -> str:
        if text.startswith("sentinel://"):
            return _check_sentinel_uri(text)
        if ";" in text:
            raise ValueError("it has several addresses, and only one is possible")
        return _check_uri(text, ("redis", "rediss"))

    @field_validator("api_keys")
    @classmethod
    def _check_api_keys(cls, text: str) -> str:
        for digest in filter(None, text.split(",")):
            if not _DIGEST.fullmatch(digest.strip()):
                raise ValueError(
                    "it must have SHA-256 digests of the keys, 64 hex digits each, not the keys; "
                    "make one with: tr -d '\\n' < client.key | sha256sum"
                )
            if digest.strip().lower() == _EMPTY_DIGEST:
                raise ValueError("it has the digest of an empty key: was the key file empty?")
        return text


def _unknown_propagators() -> list[str]:
    """Return the names in OTEL_PROPAGATORS that no installed package has; FastAPI cannot be imported with one."""
    names = [name.strip() for name in (os.environ.get("OTEL_PROPAGATORS") or "none").split(",")]
    return [name for name in names if name != "none" and not entry_points(group="opentelemetry_propagator", name=name)]


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _check_uri(text: str, schemes: Sequence[str]) -> str:
    """Return an address, with the parameters of TLS as kombu, Celery and redis-py all read them.

    No message repeats the address, which has a password.
    """
    uri = text.strip()
    scheme, separator, rest = uri.partition("://")
    if not uri:
        raise ValueError("it is empty")
    if not separator:
        raise ValueError(f"it does not begin with {' or '.join(f'{one}://' for one in schemes)}")
    if scheme in _UNSUPPORTED and scheme not in schemes:
        raise ValueError(f"{_UNSUPPORTED[scheme]}; use {' or '.join(f'{one}://' for one in schemes)}")
    if scheme not in schemes:
        raise ValueError(f"its scheme must be {' or '.join(schemes)}")
    parts = _split(rest)
    if any(character.isspace() for character in uri):
        raise ValueError("it has no host, or has a blank")
    query = _check_query(parts.query, _TLS_PARAMETERS if scheme in ("amqps", "rediss") else set())
    if scheme != "rediss":
        return uri
    return f"{uri.partition('?')[0]}?{urlencode({'ssl_cert_reqs': 'required', **query})}"


def _split(rest: str) -> SplitResult:
    """Return the parts of an address after its scheme."""
    try:
        parts = urlsplit(f"http://{rest}")
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError("its port is not a number from 1 to 65535") from error
    if not has_host:
        raise ValueError("it has no host, or has a blank")
    return parts


def _check_query(text: str, allowed: Collection[str]) -> dict[str, str]:
    query = dict(parse_qsl(text))
    if unknown := sorted(query.keys() - allowed):
        raise ValueError(f"its parameter {unknown[0]} is not supported; TLS has {', '.join(sorted(_TLS_PARAMETERS))}")
    if (check := query.get("ssl_cert_reqs")) is not None:
        query["ssl_cert_reqs"] = _CERT_REQS.get(check, check)
        if query["ssl_cert_reqs"] not in _CERT_REQS.values():
            raise ValueError("its ssl_cert_reqs must be required, optional or none")
    return query


def _check_sentinel_uri(text: str) -> str:
    """Return the address of Sentinels in one form: the login in the first part, database and parameters in the last.

    The form with them in another part, as Celery documents it, is understood too.
    """
    uri, _, query_text = text.partition("?")
    parts = [_split(_check_uri(one, ("sentinel",)).partition("://")[2]) for one in uri.split(";")]
    hosts = [part.netloc.rpartition("@")[2] for part in parts]
    logins = {login for part in parts if (login := part.netloc.rpartition("@")[0])}
    databases = {database for part in parts if (database := part.path.strip("/"))} or {"0"}
    if len(logins) > 1 or len(databases) > 1:
        raise ValueError("its parts have different logins or databases, and they are those of one result store")
    login, database = "".join(f"{one}@" for one in logins), databases.pop()
    if not database.isdecimal():
        raise ValueError("its database is not a number")
    query = {"master_name": _MASTER_NAME, **_check_query(query_text, _SENTINEL_PARAMETERS)}
    if "master_name=" in query_text.split("&"):
        raise ValueError("its master_name is empty")
    if query.keys() & _TLS_PARAMETERS:
        query = {"ssl_cert_reqs": "required", **query}
    sentinels = ";".join(f"sentinel://{one}" for one in [f"{login}{hosts[0]}", *hosts[1:]])
    return f"{sentinels}/{database}?{urlencode(query)}"


def load_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SystemExit: a setting is not valid; a sentence names each such variable, and a value that works.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("\n".join(map(_sentence, error.errors()))) from None


def _sentence(fault: Any) -> str:
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if not fault["loc"]:
        return f"Cannot start: {message}."
    name = str(fault["loc"][0])
    default = Settings.model_fields[name].default
    example = default.name if isinstance(default, Path) else f"{default}".lower() if default is False else default
    sentence = f"Cannot start: {name.upper()} is not valid: {message}."
    return f"{sentence} An example: {name.upper()}={example}" if example != "" else sentence


settings = load_settings()
