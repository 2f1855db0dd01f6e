"""The settings: names, types, and their documentation."""

import pytest
from pydantic import ValidationError

from celery_task_app.settings import Settings


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


@pytest.mark.parametrize(("name", "value"), [("GROUP_MAX", "0"), ("RESULT_TTL_S", "soon"), ("WARM_UP", "perhaps")])
def test_an_invalid_value_is_refused_by_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("keys", ["secret", "secret," + "0" * 64, "0" * 63])
def test_an_invalid_api_key_digest_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("API_KEYS", keys)
    with pytest.raises(ValidationError, match="api_keys") as refused:
        Settings()
    assert keys not in str(refused.value)


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
