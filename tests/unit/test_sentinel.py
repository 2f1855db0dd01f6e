"""The address of a result store behind Sentinels, as redis-py and Celery get it."""

from celery_task_app.settings import Settings
from celery_task_app.store.sentinel import SentinelAddress, celery_backend

URI = (
    "sentinel://user:p%3A%40@one:26379;sentinel://two/3"
    "?master_name=churn&ssl_ca_certs=/ca.pem&sentinel_username=watch&sentinel_password=s%26t"
)


def test_redis_py_gets_every_part_of_an_address() -> None:
    address = SentinelAddress.parse(Settings(backend_uri=URI).backend_uri)
    assert address.sentinels == [("one", 26379), ("two", 26379)]
    assert address.master_name == "churn"
    tls = {"ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "required"}
    assert address.store_options == {"db": 3, "username": "user", "password": "p:@", **tls}
    logins = {"username": "watch", "password": "s&t"}
    timeouts = {"socket_timeout": 0.375, "socket_connect_timeout": 0.375}
    assert address.sentinel_options == {**timeouts, **logins, **tls}


def test_celery_gets_the_same_address_in_its_own_form() -> None:
    uri = Settings(backend_uri=URI).backend_uri
    options = SentinelAddress.parse(uri).sentinel_options
    assert celery_backend(uri) == {
        "result_backend": "sentinel://user:p%3A%40@one:26379/3;sentinel://user:p%3A%40@two:26379",
        "result_backend_transport_options": {"master_name": "churn", "sentinel_kwargs": options},
        "redis_backend_use_ssl": {"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "required"},
    }


def test_celery_gets_another_address_as_it_is() -> None:
    assert celery_backend("redis://store/0") == {"result_backend": "redis://store/0"}
