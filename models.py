"""The API's schemas: a customer as the bank's data set describes one, and the answers. Not the ML model."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=100_000)]
Dollars = Annotated[float, Field(ge=0, le=100_000_000, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]


class Customer(BaseModel):
    """The 19 features of a customer, as BankChurners.csv has them; other fields are ignored."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True)

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
    Avg_Open_To_Buy: Dollars
    """Credit still open, averaged over the last 12 months, in US dollars."""
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


class Task(BaseModel):
    """A prediction that is not there yet."""

    task_id: str
    status: Literal["Processing"] = "Processing"


class Prediction(BaseModel):
    """A prediction."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    task_id: str
    status: Literal["Success"] = "Success"
    probability: Annotated[float, Field(ge=0, le=1)]
    """Of churn."""
    model_version: str
    """Of the model that computed it."""


class Fault(BaseModel):
    """One thing that is wrong with a request's body; the value itself is never repeated."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """Where, as a JSON pointer (RFC 6901)."""
    code: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """Which kind, as a stable URI reference; the README describes each."""
    title: str
    status: int
    detail: str
    errors: list[Fault] | None = None
    """Every fault of the body."""


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

    model_config = ConfigDict(use_attribute_docstrings=True)

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

    model_config = ConfigDict(use_attribute_docstrings=True)

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
