"""The API's schemas: a customer with the features of BankChurners.csv, and the responses. The ML model is elsewhere."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

Dollars = Annotated[float, Field(ge=0, le=100_000_000, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


def _add_example(schema: dict[str, Any]) -> None:
    """Add the example of a customer, which has the example of each feature."""
    schema["examples"] = [{name: feature["examples"][0] for name, feature in schema["properties"].items()}]


class Customer(BaseModel):
    """The features of a customer, as BankChurners.csv has them; other fields are ignored."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True, json_schema_extra=_add_example)

    Customer_Age: int = Field(title="Age", ge=16, le=120, examples=[45])
    """Age in years."""
    Gender: Literal["F", "M"] = Field(title="Gender", examples=["M"])
    Dependent_count: int = Field(title="Dependents", ge=0, le=50, examples=[3])
    Education_Level: Literal[
        "Uneducated", "High School", "College", "Graduate", "Post-Graduate", "Doctorate", "Unknown"
    ] = Field(title="Education", examples=["High School"])
    Marital_Status: Literal["Divorced", "Married", "Single", "Unknown"] = Field(
        title="Marital status", examples=["Married"]
    )
    Income_Category: Literal["Less than $40K", "$40K - $60K", "$60K - $80K", "$80K - $120K", "$120K +", "Unknown"] = (
        Field(title="Income per year", examples=["$60K - $80K"])
    )
    """Income per year, in US dollars."""
    Card_Category: Literal["Blue", "Silver", "Gold", "Platinum"] = Field(title="Card", examples=["Blue"])
    Months_on_book: int = Field(title="Months as customer", ge=0, le=1_200, examples=[39])
    """Months since the customer's first account."""
    Total_Relationship_Count: int = Field(title="Products", ge=0, le=1_000, examples=[5])
    """Products of the bank that the customer holds."""
    Months_Inactive_12_mon: int = Field(title="Inactive months", ge=0, le=12, examples=[1])
    """Months without activity in the last 12."""
    Contacts_Count_12_mon: int = Field(title="Contacts", ge=0, le=10_000, examples=[3])
    """Contacts in the last 12 months."""
    Credit_Limit: Dollars = Field(title="Credit limit, $", examples=[12691])
    Total_Revolving_Bal: Dollars = Field(title="Revolving balance, $", examples=[777])
    """Balance carried over from month to month, in US dollars."""
    Avg_Open_To_Buy: float = Field(
        title="Open to buy, $", ge=-100_000_000, le=100_000_000, allow_inf_nan=False, examples=[11914]
    )
    """Credit still open, averaged over the last 12 months, in US dollars; below 0 is over the limit."""
    Total_Amt_Chng_Q4_Q1: Ratio = Field(title="Amount, Q4 over Q1", examples=[1.335])
    """Amount of the transactions of the fourth quarter over that of the first."""
    Total_Trans_Amt: Dollars = Field(title="Transactions, $", examples=[1144])
    """Amount of the transactions of the last 12 months, in US dollars."""
    Total_Trans_Ct: int = Field(title="Transactions", ge=0, le=100_000, examples=[42])
    """Transactions in the last 12 months."""
    Total_Ct_Chng_Q4_Q1: Ratio = Field(title="Number, Q4 over Q1", examples=[1.625])
    """Number of the transactions of the fourth quarter over that of the first."""
    Avg_Utilization_Ratio: float = Field(title="Utilization", ge=0, le=100, allow_inf_nan=False, examples=[0.061])
    """Share of the credit limit in use; above 1 is over the limit."""

    WIDENING_VALIDATORS: ClassVar = frozenset({"_accept_whole_numbers_as_integers"})
    """Validators that accept more rows, and change no row that is valid without them; batches may skip them."""

    @model_validator(mode="wrap")
    @classmethod
    def _accept_whole_numbers_as_integers(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Accept 45.0 as an integer, as JSON Schema does.

        The conversion runs only after a failed validation: a validator for each field would double the cost of all.
        """
        try:
            return validate(value)
        except ValidationError:
            if not isinstance(value, dict):
                raise
            whole = {name: int(x) for name, x in value.items() if isinstance(x, float) and x.is_integer()}
            return validate(value | whole)


class Task(BaseModel):
    """A prediction that has no result yet."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"task_id": "5f0c2e5e-6b0e-4f7e-9a43-0f4c1b1c8a57", "status": "Processing"}]}
    )

    task_id: str
    status: Literal["Processing"] = "Processing"


class Reason(BaseModel):
    """The contribution of one feature to the probability, in log-odds."""

    feature: str
    log_odds: float


class Reasons(BaseModel):
    """Contributions to a probability p, in log-odds: base, up, down and others add up to log(p / (1 - p))."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base: float
    """The same for every customer: the log-odds before any feature is known."""
    up: list[Reason]
    """The features that raised the probability most, the strongest first; at most three."""
    down: list[Reason]
    """The features that lowered the probability most, the strongest first; at most three."""
    others: float
    """The sum of all other features."""


class Prediction(BaseModel):
    """A computed prediction."""

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
    """Probability of churn."""
    model_version: str
    """Version of the model that computed the prediction."""
    reasons: Reasons | None = None
    """The reasons, if the request had `explain=true`."""


class Feature(BaseModel):
    """One feature of the model, as in the training data; a value outside its range is predicted all the same."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    type: Literal["integer", "number", "category"]
    categories: list[str] | None = None
    """The categories in the training data; only for a category."""
    minimum: float | None = None
    """The least value in the training data; only for a number."""
    maximum: float | None = None
    """The greatest value in the training data; only for a number."""


class Training(BaseModel):
    """The data with which the model was trained."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    data_sha256: str
    """SHA-256 of the data file."""
    rows: int | None = None
    rows_fitted: int | None = None
    """Rows with which the model was fitted."""
    rows_scored: int | None = None
    """Rows that were held out, and gave the scores."""


class Spread(BaseModel):
    """Scores of the same code on other random splits, which show how much of a score is chance."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    seeds: list[int]
    """The random seeds of the splits."""
    mean: dict[str, float]
    deviation: dict[str, float]


class ModelVersion(BaseModel):
    """A version of the model that workers have."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str
    sha256: str | None = None
    """SHA-256 of the model file; workers up to 0.1.0 do not report it."""
    workers: int
    """The number of live workers that have this version."""


class ModelCard(BaseModel):
    """The model that most workers have, as its manifest describes it; a field that the manifest lacks is left out."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "churn",
                    "description": "The probability that a customer closes the account.",
                    "version": "2eb71a7af843",
                    "in_use": [
                        {
                            "version": "2eb71a7af843",
                            "sha256": "2eb71a7af84386440557a419f1162a23166278abacd05088cc834e0f52965fbf",
                            "workers": 1,
                        }
                    ],
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
    """Limits of the model, and uses that are not intended."""
    version: str
    """The `model_version` of each prediction."""
    in_use: list[ModelVersion]
    """The versions that workers have now, first the one of most workers; during an upgrade there are several."""
    created: str | None = None
    """The day of the training."""
    sha256: str
    """SHA-256 of the model file."""
    features: list[Feature]
    """The features, in the order of the training data; empty without a manifest."""
    training: Training | None = None
    scores: dict[str, float] | None = None
    """Scores on the rows that were held out."""
    spread: Spread | None = None
    threshold: float | None = None
    """From this probability on a prediction counts as class 1, in scores that need a decision (such as f1)."""
    explains: bool | None = None
    """Whether the model gives reasons."""
    calibration: dict[str, str | float] | None = None
    """The calibration of the probabilities, and its effect out of fold."""
    parameters: dict[str, str | float | bool] | None = None
    """The parameters of LightGBM."""
    catboost_parameters: dict[str, str | float | bool] | None = None
    """The parameters of CatBoost, which grew half of the trees."""
    libraries: dict[str, str] | None = None
    """The versions at training; scikit-learn and LightGBM must have the same version in the worker."""


class Alive(BaseModel):
    """The process is alive."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "alive"}]})

    status: Literal["alive"] = "alive"


class WorkerState(BaseModel):
    """The status that a worker publishes."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    model: Literal["loaded", "not loaded yet", "failed", "stuck", "unfit"]
    """`unfit`: its model cannot predict all customers that this API accepts."""
    detail: str
    """The version of the model, or the reason why the worker cannot predict."""
    queues: list[str] | None = None
    """The queues that the worker consumes: `churn` for predictions, `churn.batch` for batches."""
    name: str | None = None
    """The name of the worker's model."""
    sha256: str | None = None
    """SHA-256 of the worker's model file."""
    explains: bool | None = None
    """Whether the worker's model gives reasons."""
    clock_skew_s: float | None = None
    """The seconds by which the worker's clock is ahead of the result store's."""


class Ready(BaseModel):
    """Every part of the service works."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "broker": "up",
                    "result_store": "up",
                    "subscription": "up",
                    "submissions": "up",
                    "completions": "up",
                    "workers": {
                        "celery@host/1": {
                            "model": "loaded",
                            "detail": "2eb71a7af843",
                            "queues": ["churn", "churn.batch", "churn.dead"],
                            "name": "churn",
                            "sha256": "2eb71a7af84386440557a419f1162a23166278abacd05088cc834e0f52965fbf",
                            "explains": True,
                            "clock_skew_s": 0.001,
                        }
                    },
                    "messages": {"churn": 0, "churn.batch": 0},
                    "consumers": {"churn": 1, "churn.batch": 1},
                    "warnings": [],
                }
            ]
        },
    )

    status: Literal["ready"]
    broker: Literal["up"]
    result_store: Literal["up"]
    subscription: Literal["up"]
    """Whether this process learns of completions."""
    submissions: Literal["up"]
    """Whether the last predictions were accepted."""
    completions: str
    """"up"; else predictions wait in the queue, and none has ended for 10 s. `without=workers` does not count it."""
    workers: dict[str, WorkerState]
    """The status of each live worker, by its name."""
    messages: dict[str, int]
    """By queue, the messages that no worker has taken yet; a message has one or more predictions."""
    consumers: dict[str, int]
    """By queue, the consumers that RabbitMQ reports; Valkey and Redis do not count them."""
    warnings: list[str]
    """Problems that prevent no prediction, such as a clock that is more than a second off."""


class WaitingQueue(BaseModel):
    """The customers of one kind that wait: predictions, or rows of batches."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    waiting: int
    """Accepted, and not ended."""
    oldest_s: float
    """Seconds that the oldest message or batch with such a customer has waited; 0 if there is none."""
    drained_per_s: float | None
    """Customers that end in a second, over the last 10 s; null unless customers waited at two readings in a row."""


class Queue(BaseModel):
    """The queue of the whole service."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "predictions": {"waiting": 120, "oldest_s": 0.2, "drained_per_s": 1500.0},
                    "batch_rows": {"waiting": 0, "oldest_s": 0.0, "drained_per_s": None},
                    "estimated_s": 0.08,
                    "workers": {"loaded": 2},
                }
            ]
        },
    )

    predictions: WaitingQueue
    batch_rows: WaitingQueue
    estimated_s: float
    """Seconds until a prediction that is accepted now is computed; an estimate."""
    workers: dict[Literal["loaded", "not loaded yet", "failed", "stuck", "unfit"], int]
    """By state, the number of live workers; without a `loaded` worker nothing is computed."""


class Fault(BaseModel):
    """One fault of a request; it never repeats the value."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """The place of the fault, as a JSON pointer (RFC 6901)."""
    code: str
    message: str


class Problem(BaseModel):
    """An error response (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """The problem type, as a stable URI reference; the documentation describes each."""
    title: str
    status: int
    detail: str
    errors: list[Fault] | None = None
    """Every fault of the request."""


class RefusedRow(BaseModel):
    """A row of a batch that is not a valid customer."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    row: int
    """The number of the row among the rows sent, from 0."""
    line: int | None = None
    """The line of a CSV or NDJSON file in which the row begins, from 1."""
    errors: list[Fault]


class AcceptedBatch(BaseModel):
    """An accepted batch."""

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
    """Rows that are not valid customers, and will not be scored."""
    rows: list[RefusedRow]
    """The first hundred refused rows."""


class Batch(BaseModel):
    """The progress of a batch."""

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
                    "model_versions": {"2eb71a7af843": 10127},
                }
            ]
        },
    )

    batch_id: str
    status: Literal["Processing", "Success"]
    """Success once every row has a result or has failed."""
    total: int
    """Rows of the batch, without refused rows."""
    done: int
    """Rows that have a result or have failed."""
    failed: int
    """Rows that could not be predicted."""
    model_version: str | None
    """Version of the model that computed the last rows; null before the first."""
    model_versions: dict[str, int]
    """By version, the rows that this version computed; more than one if the model was replaced meanwhile."""
