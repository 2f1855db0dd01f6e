import pytest
from pydantic import ValidationError

from celery_task_app.settings import Settings


def test_the_articles_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PATH", "/models/churn.joblib")
    monkeypatch.setenv("BROKER_URI", "amqp://broker//")
    monkeypatch.setenv("BACKEND_URI", "redis://store/0")
    read = Settings()
    assert (str(read.model_path), read.broker_uri, read.backend_uri) == (
        "/models/churn.joblib",
        "amqp://broker//",
        "redis://store/0",
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().warm_up = True  # type: ignore[misc]


@pytest.mark.parametrize(("name", "value"), [("GROUP_MAX", "0"), ("RESULT_TTL_S", "soon"), ("WARM_UP", "perhaps")])
def test_a_senseless_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
