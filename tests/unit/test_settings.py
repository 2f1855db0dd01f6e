"""The settings: names, types, and their documentation."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from celery_task_app.settings import Settings, load_settings
from tests.harness.processes import ROOT


def test_the_variables_of_the_article_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/churn.joblib")
    monkeypatch.setenv("BROKER_URI", "amqp://broker//")
    monkeypatch.setenv("BACKEND_URI", "redis://store/0")
    settings = Settings()
    assert (str(settings.model_path), settings.broker_uri, settings.backend_uri) == (
        "/models/churn.joblib",
        "amqp://broker//",
        "redis://store/0",
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().warm_up = True


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GROUP_MAX", "0", "greater than or equal to 1"),
        ("RESULT_TTL_S", "soon", "valid integer"),
        ("WARM_UP", "perhaps", "valid boolean"),
        ("METRICS_PORT", "65535", "less than or equal to 65534"),
        ("BROKER_URI", "", "it is empty"),
        ("BROKER_URI", "secret.example:5672", "does not begin with amqp://"),
        ("BROKER_URI", "http://secret.example", "its scheme must be"),
        ("BROKER_URI", "amqp://", "no host"),
        ("BROKER_URI", "amqp://u:secret@h:port//", "its port"),
        ("BROKER_URI", "amqp://one//;redis://two/0", "one RabbitMQ cluster"),
        ("BACKEND_URI", "", "it is empty"),
        ("BACKEND_URI", "127.0.0.1:6379", "does not begin with redis://"),
        ("BACKEND_URI", "amqp://secret//", "its scheme must be"),
        ("BACKEND_URI", "unix:///secret.sock", "Unix socket"),
        ("BACKEND_URI", "redis+socket:///secret.sock", "Unix socket"),
        ("BROKER_URI", "sentinel://secret:26379", "for the result store only"),
        ("BACKEND_URI", "sentinel://secret:26379;redis://two", "its scheme must be sentinel"),
        ("BACKEND_URI", "sentinel://:secret@one;sentinel://:secret2@two", "different logins"),
        ("BACKEND_URI", "sentinel://secret/0;sentinel://two/1", "different logins or databases"),
        ("BACKEND_URI", "sentinel://secret/x", "database is not a number"),
        ("BACKEND_URI", "sentinel://secret;", "is empty"),
        ("BACKEND_URI", "sentinel://secret?socket_timeout=9", "parameter socket_timeout is not supported"),
        ("BACKEND_URI", "sentinel://secret?master_name=", "master_name is empty"),
        ("RESULT_REPLICAS", "-1", "greater than or equal to 0"),
        ("BACKEND_URI", "rediscluster://secret:7000", "Redis Cluster"),
        ("BACKEND_URI", "rediss://secret/0?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
        ("BACKEND_URI", "redis://secret/0?db=x", "parameter db is not supported"),
        ("BROKER_URI", "amqp://secret//?heartbeat=abc", "parameter heartbeat is not supported"),
        ("BACKEND_URI", "redis://one/0;redis://two/0", "several addresses"),
        ("API_KEYS", "secret", "digests of the keys"),
        ("API_KEYS", "secret," + "0" * 64, "digests of the keys"),
        ("API_KEYS", "0" * 63, "digests of the keys"),
        ("API_KEYS", hashlib.sha256(b"").hexdigest(), "empty key"),
    ],
)
def test_an_invalid_value_is_refused_with_its_variable_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as refused:
        load_settings()
    sentence = str(refused.value)
    assert sentence.startswith(f"Cannot start: {name} is not valid: ")
    assert re.search(reason, sentence)
    assert "\n" not in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize(
    "name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"]
)
def test_a_variable_that_celery_prefers_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "redis://other/0")
    with pytest.raises(SystemExit, match=f"{name} is set"):
        load_settings()


def test_blanks_and_line_ends_around_values_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARM_UP": "true\n", "BACKEND_URI": " redis://store/0\n", "GROUP_MAX": " 7 "}.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.warm_up, settings.backend_uri, settings.group_max) == (True, "redis://store/0", 7)


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", "required"), ("?ssl_cert_reqs=CERT_NONE", "none"), ("?ssl_cert_reqs=optional", "optional")],
)
def test_both_spellings_of_tls_are_understood_and_certificates_are_verified_by_default(
    monkeypatch: pytest.MonkeyPatch, query: str, expected: str
) -> None:
    for name in ("BROKER_URI", "BACKEND_URI"):
        monkeypatch.setenv(name, f"rediss://store/0{query}")
    settings = load_settings()
    assert settings.backend_uri == settings.broker_uri == f"rediss://store/0?ssl_cert_reqs={expected}"


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("env", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "churn", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
    ids=str,
)
def test_traces_are_on_if_variables_of_opentelemetry_ask_for_them(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], is_on: bool
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert Settings().is_tracing_on is is_on


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("OTEL_TRACES_EXPORTER", "console", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc", "http/protobuf"),
    ],
)
def test_traces_that_the_service_cannot_export_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, needed: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^Cannot start: {name} must be {needed}, or unset"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (ENDPOINT, "ftp://collector", "must begin with http:// or https://"),
        (ENDPOINT, "collector:4318", "must begin with http:// or https://"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "not a url", "must begin with http:// or https://"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer a-secret", "must be name=value"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b,c", "must be name=value"),
    ],
)
def test_addresses_and_headers_of_a_collector_that_cannot_work_are_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^Cannot start: {name} {reason}") as refused:
        load_settings()
    assert value not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", "must be a whole number from 1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "must be a whole number from 1"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "-1", "must be a whole number from 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "must be a whole number from 1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1.5", "must be a whole number from 1"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "must be one of parentbased_always_on, "),
        ("OTEL_TRACES_SAMPLER_ARG", "1%", "must be a number from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.1", "must be a number from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "must be a number from 0 to 1"),
    ],
)
def test_values_that_the_sdk_of_traces_cannot_read_are_refused_if_traces_are_on(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    load_settings()
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    with pytest.raises(SystemExit, match=f"^Cannot start: {name} {reason}"):
        load_settings()


def test_a_queue_of_spans_that_is_smaller_than_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    with pytest.raises(SystemExit, match=r"BATCH_SIZE \(512\) must not be above OTEL_BSP_MAX_QUEUE_SIZE \(100\)"):
        load_settings()
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100")
    load_settings()


@pytest.mark.parametrize("value", ["garbage", "tracecontext,", "tracecontext, b4"])
def test_an_unknown_propagator_is_refused_before_fastapi_is_imported(value: str) -> None:
    environment = {**os.environ, "OTEL_PROPAGATORS": value}
    start = subprocess.run(
        [sys.executable, "-c", "import app"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    name = value.rpartition(",")[2].strip()
    assert start.stderr == (
        f"Cannot start: OTEL_PROPAGATORS has {name!r}, which is not installed: use tracecontext, baggage.\n"
    )


@pytest.mark.parametrize("value", ["", "none", "tracecontext", " baggage , tracecontext"])
def test_installed_propagators_are_accepted(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", value)
    load_settings()


@pytest.mark.parametrize("level", ["WARNING", "Warning", " warning\n"])
def test_the_level_of_log_lines_may_have_capitals(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    assert Settings().log_level == "warning"


def test_traces_without_the_extra_are_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://collector:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(SystemExit) as refused:
        load_settings()
    assert str(refused.value) == (
        f"Cannot start: {ENDPOINT} asks for traces, and opentelemetry.exporter.otlp.proto.http is not installed: "
        "pip install --no-deps --require-hashes -r requirements/tracing.txt."
    )


@pytest.mark.parametrize(
    ("given", "normalized"),
    [
        ("sentinel://one", "sentinel://one/0?master_name=mymaster"),
        (
            "sentinel://:pw@one:26379/1;sentinel://:pw@two:26380/1",
            "sentinel://:pw@one:26379;sentinel://two:26380/1?master_name=mymaster",
        ),
        (
            "sentinel://one;sentinel://u:p%40@two/3?ssl_cert_reqs=CERT_NONE&master_name=churn&sentinel_password=s",
            "sentinel://u:p%40@one;sentinel://two/3?ssl_cert_reqs=none&master_name=churn&sentinel_password=s",
        ),
    ],
)
def test_an_address_of_sentinels_is_brought_into_one_form(given: str, normalized: str) -> None:
    assert Settings(backend_uri=given).backend_uri == normalized
    assert Settings(backend_uri=normalized).backend_uri == normalized


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
