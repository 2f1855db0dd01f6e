"""The API's schemas: a customer as the bank's data set describes one, and the answers. Not the ML model."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from celery_task_app.problems import Fault

Count = Annotated[int, Field(ge=0, le=100_000)]
Dollars = Annotated[float, Field(ge=0, le=100_000_000, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class Customer(BaseModel):
    """The 19 features of a customer, as BankChurners.csv has them; other fields are ignored."""

    model_config = ConfigDict(
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "Customer_Age": 45,
                    "Gender": "M",
                    "Dependent_count": 3,
                    "Education_Level": "High School",
                    "Marital_Status": "Married",
                    "Income_Category": "$60K - $80K",
                    "Card_Category": "Blue",
                    "Months_on_book": 39,
                    "Total_Relationship_Count": 5,
                    "Months_Inactive_12_mon": 1,
                    "Contacts_Count_12_mon": 3,
                    "Credit_Limit": 12691,
                    "Total_Revolving_Bal": 777,
                    "Avg_Open_To_Buy": 11914,
                    "Total_Amt_Chng_Q4_Q1": 1.335,
                    "Total_Trans_Amt": 1144,
                    "Total_Trans_Ct": 42,
                    "Total_Ct_Chng_Q4_Q1": 1.625,
                    "Avg_Utilization_Ratio": 0.061,
                }
            ]
        },
    )

    Customer_Age: Annotated[int, Field(ge=16, le=120)]
    """Years."""
    Gender: Literal["F", "M"]
    Dependent_count: Annotated[int, Field(ge=0, le=50)]
    Education_Level: Literal[
        "Uneducated", "High School", "College", "Graduate", "Post-Graduate", "Doctorate", "Unknown"
    ]
    Marital_Status: Literal["Divorced", "Married", "Single", "Unknown"]
    Income_Category: Literal["Less than $40K", "$40K - $60K", "$60K - $80K", "$80K - $120K", "$120K +", "Unknown"]
    """Per year, in US dollars."""
    Card_Category: Literal["Blue", "Silver", "Gold", "Platinum"]
    Months_on_book: Annotated[int, Field(ge=0, le=1_200)]
    """Months since the customer's first account."""
    Total_Relationship_Count: Annotated[int, Field(ge=0, le=1_000)]
    """Products of the bank that the customer holds."""
    Months_Inactive_12_mon: Annotated[int, Field(ge=0, le=12)]
    """Months without activity in the last 12."""
    Contacts_Count_12_mon: Annotated[int, Field(ge=0, le=10_000)]
    """Contacts in the last 12 months."""
    Credit_Limit: Dollars
    Total_Revolving_Bal: Dollars
    """Balance carried over from month to month, in US dollars."""
    Avg_Open_To_Buy: Annotated[float, Field(ge=-100_000_000, le=100_000_000, allow_inf_nan=False)]
    """Credit still open, averaged over the last 12 months, in US dollars; below 0 is over the limit."""
    Total_Amt_Chng_Q4_Q1: Ratio
    """Amount of the transactions of the fourth quarter over that of the first."""
    Total_Trans_Amt: Dollars
    """Amount of the transactions of the last 12 months, in US dollars."""
    Total_Trans_Ct: Count
    """Transactions in the last 12 months."""
    Total_Ct_Chng_Q4_Q1: Ratio
    """Number of the transactions of the fourth quarter over that of the first."""
    Avg_Utilization_Ratio: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    """Share of the credit limit in use; above 1 is over the limit."""

    @model_validator(mode="wrap")
    @classmethod
    def _take_whole_numbers_as_integers(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Take 45.0 as JSON Schema does. Only who sends it pays for it: a validator for each field doubles the cost."""
        try:
            return validate(value)
        except ValidationError:
            if not isinstance(value, dict):
                raise
            whole = {name: int(x) for name, x in value.items() if isinstance(x, float) and x.is_integer()}
            return validate(value | whole)


class Task(BaseModel):
    """A prediction that is not there yet."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"task_id": "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57", "status": "Processing"}]}
    )

    task_id: str
    status: Literal["Processing"] = "Processing"


class Reason(BaseModel):
    """What one feature did to the probability."""

    feature: str
    log_odds: float


class Reasons(BaseModel):
    """What made a probability, in log-odds: base, up, down and others add up to log(p / (1 - p))."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base: float
    """Where the model starts from with every customer."""
    up: list[Reason]
    """The features that pushed most towards churn, the strongest first; at most three."""
    down: list[Reason]
    """Those that pushed most away from it."""
    others: float
    """What all other features did together."""


class Prediction(BaseModel):
    """A prediction."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "task_id": "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57",
                    "status": "Success",
                    "probability": 0.00025044398002870265,
                    "model_version": "2eb71a7af843",
                }
            ]
        },
    )

    task_id: str
    status: Literal["Success"] = "Success"
    probability: Annotated[float, Field(ge=0, le=1)]
    """Of churn."""
    model_version: str
    """Of the model that computed it."""
    reasons: Reasons | None = None
    """If they were asked for."""


class Feature(BaseModel):
    """One of the model's features, as the training data has it; a value beyond its range is predicted all the same."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    type: Literal["integer", "number", "category"]
    categories: list[str] | None = None
    """Of a category: those that were seen in training."""
    minimum: float | None = None
    """Of a number: the least that was seen in training."""
    maximum: float | None = None
    """Of a number: the greatest that was seen in training."""


class Training(BaseModel):
    """What the model was made from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data_sha256: str
    """SHA-256 of the data file."""
    rows: int | None = None
    rows_fitted: int | None = None
    """Rows that the model has seen."""
    rows_scored: int | None = None
    """Rows held out, by which it was scored."""


class Spread(BaseModel):
    """What the same code scores on other random splits: how much of the scores is luck."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seeds: list[int]
    """Of the splits."""
    mean: dict[str, float]
    deviation: dict[str, float]


class ModelCard(BaseModel):
    """The model that predicts, as its manifest describes it; what the manifest does not say is left out."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "churn",
                    "description": "The probability that a customer closes the account, from 19 features.",
                    "version": "2eb71a7af843",
                    "created": "2026-11-25",
                    "sha256": "2eb71a7af84386440557a419f1162a23166278abacd05088cc834e0f52965fbf",
                    "features": [
                        {"name": "Customer_Age", "type": "integer", "minimum": 26, "maximum": 73},
                        {"name": "Gender", "type": "category", "categories": ["F", "M"]},
                    ],
                    "training": {
                        "data_sha256": "758ec415de20d06fe86f6b1d8f3dbff9e11e5cce98e54dab30e86b9d9b3467d5",
                        "rows": 10127,
                        "rows_fitted": 8101,
                        "rows_scored": 2026,
                    },
                    "scores": {"roc_auc": 0.996222, "brier": 0.015323},
                    "threshold": 0.43,
                }
            ]
        },
    )

    name: str
    description: str | None = None
    intended_use: str | None = None
    limits: list[str] | None = None
    """What it does not know, and what it must not be used for."""
    version: str
    """As in each prediction's `model_version`."""
    created: str | None = None
    """The day when it was made."""
    sha256: str
    """Of the model file."""
    features: list[Feature]
    """In the order of the training data."""
    training: Training | None = None
    scores: dict[str, float] | None = None
    """How good it was on the rows held out."""
    spread: Spread | None = None
    threshold: float | None = None
    """The probability from which on a customer counted as churning for those scores that need a yes or a no."""
    explains: bool | None = None
    """Whether it gives reasons."""
    calibration: dict[str, str | float] | None = None
    """Whether the probabilities are corrected, and what that would change out of fold."""
    parameters: dict[str, str | float | bool] | None = None
    """What the algorithm was told."""
    catboost_parameters: dict[str, str | float | bool] | None = None
    """What CatBoost was told, which grew as many of the trees."""
    libraries: dict[str, str] | None = None
    """The versions that it was made with; of scikit-learn and LightGBM it needs the same."""


class Alive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class Sign(BaseModel):
    """What a worker says of itself."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: Literal["loaded", "not loaded yet", "failed", "stuck"]
    detail: str
    """The model's version, or why it can't be used."""


class Ready(BaseModel):
    """Each part of the service works."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "broker": "up",
                    "result_store": "up",
                    "workers": {"celery@host": {"model": "loaded", "detail": "2eb71a7af843"}},
                }
            ]
        },
    )

    status: Literal["ready"]
    broker: Literal["up"]
    result_store: Literal["up"]
    workers: dict[str, Sign]
    """Each live worker by its name."""


class RefusedRow(BaseModel):
    """A row of a batch that is not a customer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    row: int
    """Its place among the rows sent, from 0."""
    line: int | None = None
    """Where it begins in a CSV file, from 1."""
    errors: list[Fault]


class AcceptedBatch(BaseModel):
    """A batch that was accepted."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "batch_id": "0b8fe54a-80f5-4af5-8e7c-a64ab140b30b",
                    "status": "Processing",
                    "total": 10127,
                    "refused": 0,
                    "rows": [],
                }
            ]
        },
    )

    batch_id: str
    status: Literal["Processing"] = "Processing"
    total: int
    """Rows that will be scored."""
    refused: int
    """Rows that are not customers, and will not."""
    rows: list[RefusedRow]
    """The first hundred of those."""


class Batch(BaseModel):
    """How far a batch is."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "batch_id": "0b8fe54a-80f5-4af5-8e7c-a64ab140b30b",
                    "status": "Success",
                    "total": 10127,
                    "done": 10127,
                    "failed": 0,
                    "model_version": "2eb71a7af843",
                }
            ]
        },
    )

    batch_id: str
    status: Literal["Processing", "Success"]
    """Success when every row has ended, whatever became of it."""
    total: int
    """Rows that it has, those that were refused not counted."""
    done: int
    """Rows that have ended, those that failed among them."""
    failed: int
    """Rows that can't be predicted."""
    model_version: str | None
    """Of the model that computed the last of them; null before the first."""
