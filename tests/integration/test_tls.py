"""TLS of the broker and the result store: certificates are verified unless the address says otherwise."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.result import AsyncResult

from celery_task_app.errors import BrokerUnavailable, ResultStoreUnavailable
from celery_task_app.messaging.publisher import probe_broker
from celery_task_app.settings import Settings
from celery_task_app.store.connection import check_store, connect, connect_async
from celery_task_app.store.predictions import PredictionStore
from celery_task_app.store.sentinel import celery_backend
from tests.conftest import need
from tests.harness.processes import Process, free_port, until
from tests.harness.servers import epmd_has_ended, redis_answers, start_rabbitmq, start_redis


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a certificate for `localhost` that its own key has signed; the key is beside it."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out ca.pem -days 2 -subj /CN=localhost"
    names = "subjectAltName=DNS:localhost"
    subprocess.run([*command.split(), "-addext", names], cwd=folder, check=True, capture_output=True)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder / "ca.pem"


@pytest.fixture(scope="module")
def redis_port(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    need("rabbitmq")
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-auth-clients", "no"]
    key = ["--tls-key-file", str(certificate.with_name("key.pem"))]
    server, _ = start_redis(tmp_path_factory.mktemp("redis") / "redis", "redis-server", more=[*tls, *key])
    with contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        yield port


@pytest.fixture(scope="module")
def sentinel_port(certificate: Path, redis_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Sentinel with TLS; it reports the name of the store, because the certificate has no IP address."""
    port, plain_port, folder = free_port(), free_port(), tmp_path_factory.mktemp("sentinel")
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {plain_port}\nbind 127.0.0.1\ndir {folder}\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n"
        f"tls-cert-file {certificate}\ntls-key-file {certificate.with_name('key.pem')}\n"
        f"tls-ca-cert-file {certificate}\n"
        "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
        f"sentinel monitor mymaster localhost {redis_port} 1\n"
    )
    sentinel = Process(["redis-server", str(config), "--sentinel"], folder / "log", cwd=folder)
    sentinel.start()
    with contextlib.ExitStack() as stack:
        stack.callback(sentinel.kill)
        until(lambda: redis_answers(plain_port))
        yield port


@pytest.fixture(scope="module")
def rabbitmq_port(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    need("rabbitmq")
    port, folder = free_port(), tmp_path_factory.mktemp("rabbitmq")
    options = {
        "listeners.ssl.default": f"127.0.0.1:{port}",
        "ssl_options.certfile": str(certificate),
        "ssl_options.keyfile": str(certificate.with_name("key.pem")),
        "ssl_options.verify": "verify_none",
    }
    config = folder / "rabbitmq.conf"
    config.write_text("".join(f"{name} = {value}\n" for name, value in options.items()))
    server, _, epmd_port = start_rabbitmq(folder / "rabbitmq", RABBITMQ_CONFIG_FILE=str(config.with_suffix("")))
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: until(lambda: epmd_has_ended(epmd_port)))
        stack.callback(server.kill)
        yield port


def normalized(uri: str) -> str:
    """Return an address of the result store as the settings give it to the clients."""
    return Settings(backend_uri=uri).backend_uri


def store_answers(uri: str) -> bool:
    async def check() -> float:
        async with connect_async(normalized(uri)) as client:
            return await check_store(client, "churn:test", "", ttl_s=60)

    return abs(asyncio.run(check())) < 60


def test_sentinels_and_their_store_with_a_certificate_of_a_known_authority_are_used(
    sentinel_port: int, certificate: Path
) -> None:
    uri = normalized(f"sentinel://localhost:{sentinel_port}/0?ssl_ca_certs={certificate}")
    assert store_answers(uri)
    with contextlib.closing(PredictionStore(connect(uri), result_ttl_s=60)) as store:
        store.finish({"tls": 0.5}, "v1")
    celery = Celery()
    celery.conf.update(celery_backend(uri), redis_socket_timeout=2)
    assert AsyncResult("tls", app=celery).result == 0.5
    with pytest.raises(ResultStoreUnavailable):
        store_answers(f"sentinel://localhost:{sentinel_port}/0?ssl_cert_reqs=required")


@pytest.mark.parametrize("check", ["", "&ssl_cert_reqs=CERT_REQUIRED", "&ssl_cert_reqs=required"])
def test_a_result_store_with_a_certificate_of_a_known_authority_is_used(
    redis_port: int, certificate: Path, check: str
) -> None:
    assert store_answers(f"rediss://localhost:{redis_port}/0?ssl_ca_certs={certificate}{check}")


@pytest.mark.parametrize("check", ["?ssl_cert_reqs=CERT_NONE", "?ssl_cert_reqs=none"])
def test_the_check_of_a_result_store_can_be_turned_off(redis_port: int, check: str) -> None:
    assert store_answers(f"rediss://localhost:{redis_port}/0{check}")


def test_a_result_store_with_an_unknown_certificate_is_refused_without_parameters(redis_port: int) -> None:
    with pytest.raises(ResultStoreUnavailable):
        store_answers(f"rediss://localhost:{redis_port}/0")


@pytest.mark.parametrize("query", ["?ssl_ca_certs={}", "?ssl_cert_reqs=CERT_NONE", "?ssl_cert_reqs=none"])
@pytest.mark.parametrize("scheme", ["rediss", "amqps"])
def test_a_broker_with_tls_is_used(
    redis_port: int, rabbitmq_port: int, certificate: Path, scheme: str, query: str
) -> None:
    address = {"rediss": f"rediss://localhost:{redis_port}/0", "amqps": f"amqps://localhost:{rabbitmq_port}//"}[scheme]
    uri = Settings(broker_uri=address + query.format(certificate)).broker_uri
    until(lambda: probe_broker(uri) is not None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_broker_with_an_unknown_certificate_or_another_host_is_refused(
    redis_port: int, rabbitmq_port: int, certificate: Path, host: str
) -> None:
    query = "" if host == "localhost" else f"?ssl_ca_certs={certificate}"  # the certificate names localhost only
    for address in (f"rediss://{host}:{redis_port}/0", f"amqps://{host}:{rabbitmq_port}//"):
        with pytest.raises(BrokerUnavailable, match=r"(?i)certificate|ssl"):
            probe_broker(Settings(broker_uri=address + query).broker_uri)
