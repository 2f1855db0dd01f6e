"""The errors that this service raises on purpose, as one tree. HTTP statuses are in api/http/problems.py.

ChurnServiceError
├── DataSetError              the training data is missing or has the wrong columns
├── ModelError                the model cannot be used: the worker stops
│   ├── ArtifactMissing         the file does not exist
│   ├── ArtifactCorrupt         the file is truncated, modified, or not a model
│   ├── VersionMismatch         the installed libraries differ from those of training
│   ├── SchemaMismatch          its features differ from those of the API's Customer
│   ├── LoadTooSlow             it does not load in time
│   ├── TrialFailed             it cannot predict the golden rows, or the example of Customer
│   └── GoldenRowMismatch       a golden row gets another probability than at training
├── BadBody                   the body of a request cannot be read
│   ├── BodyTooLarge            it is longer than its route reads
│   ├── UnsupportedEncoding     it is compressed, or not UTF-8
│   ├── NotJSON                 its syntax or its encoding is wrong
│   └── NotJSONType             its Content-Type is not JSON
├── PredictionError           one customer cannot be predicted; others can
│   ├── FeatureMismatch         a feature that the pipeline was trained on is missing
│   ├── InvalidPrediction       the model failed, or its output is not a probability
│   └── TooManyAttempts         every attempt lost its process or ran out of time
├── Withdrawn                 the prediction ended without a result
│   ├── Deleted                 the client deleted it
│   └── Expired                 it was not computed within its deadline
├── IdempotencyError          the Idempotency-Key cannot be honoured
│   ├── KeyReused               the key was sent before with another body
│   └── KeyInUse                the first request with this key is still being accepted
├── BatchError                a batch cannot be accepted
│   ├── MalformedBatch          the body is not valid CSV, NDJSON or JSON
│   ├── BatchTooLarge           it has more bytes or rows than allowed
│   │   └── BatchTooSlow           its validation takes too long
│   └── RowsRefused             rows are not valid customers
├── MalformedMessage          a message from the queue cannot be parsed
├── AttemptFailed             a pool process failed in the middle of a message
├── MetricsPortUnavailable    the port of the metrics cannot be used: the process does not start
└── Unavailable               the request is fine; the same request may succeed later
    ├── BrokerUnavailable       the broker did not confirm
    ├── ResultStoreUnavailable  the result store did not answer
    │   └── NotReplicated           too few of its replicas confirmed
    ├── NoSpace                 the API cannot write a temporary file
    └── Overloaded              too many predictions wait
"""

from collections.abc import Sequence


class ChurnServiceError(Exception):
    """Root of the errors that this service raises on purpose."""


class DataSetError(ChurnServiceError):
    """The training data is missing, or lacks a column that training needs."""


class ModelError(ChurnServiceError):
    """The model cannot be used."""


class ArtifactMissing(ModelError):
    """The model file or its manifest does not exist."""


class ArtifactCorrupt(ModelError):
    """The file differs from the one in its manifest, or holds no model."""


class VersionMismatch(ModelError):
    """An installed library has another version than the one that the model was trained with."""


class SchemaMismatch(ModelError):
    """The features in the manifest differ from those that the API asks for."""


class LoadTooSlow(ModelError):
    """The model does not load within MODEL_LOAD_TIMEOUT_S."""


class TrialFailed(ModelError):
    """The model cannot predict the golden rows of its manifest, or without golden rows the example of Customer."""


class GoldenRowMismatch(ModelError):
    """The model gives a golden row of its manifest another probability than at training."""


class BadBody(ChurnServiceError):
    """The body of a request cannot be read."""


class BodyTooLarge(BadBody):
    """The body is longer than its route reads."""


class UnsupportedEncoding(BadBody):
    """The body has a Content-Encoding, or a charset other than UTF-8."""


class NotJSON(BadBody):
    """The body is not a JSON text (RFC 8259), or an object has one name twice."""


class NotJSONType(BadBody):
    """The Content-Type is not a JSON media type."""


class PredictionError(ChurnServiceError):
    """One customer cannot be predicted."""


class FeatureMismatch(PredictionError):
    """A customer lacks a feature that the pipeline was trained on."""


class InvalidPrediction(PredictionError):
    """The model failed, or its output is not one probability for each customer."""


class TooManyAttempts(PredictionError):
    """Every attempt to predict this customer lost its process or ran out of time."""


class Withdrawn(ChurnServiceError):
    """The prediction ended without a result."""


class Deleted(Withdrawn):
    """The client deleted the prediction, before or after it was computed."""


class Expired(Withdrawn):
    """The prediction was not computed within its deadline."""


class IdempotencyError(ChurnServiceError):
    """An Idempotency-Key cannot be honoured."""


class KeyReused(IdempotencyError):
    """The key was sent before with another body."""


class KeyInUse(IdempotencyError):
    """The first request with this key is still being accepted."""


class BatchError(ChurnServiceError):
    """A batch cannot be accepted."""


class MalformedBatch(BatchError):
    """The body of a batch is not valid CSV, NDJSON or JSON."""


class BatchTooLarge(BatchError):
    """The body of a batch has more bytes, or more rows, than allowed."""


class BatchTooSlow(BatchTooLarge):
    """The validation of a batch takes longer than allowed."""


class RowsRefused(BatchError):
    """Rows of a batch are not valid customers: `count` of them, of which `listed` are the first."""

    def __init__(self, message: str, count: int, listed: Sequence[object]) -> None:
        super().__init__(message)
        self.count = count
        self.listed = listed


class MalformedMessage(ChurnServiceError):
    """A message from the queue cannot be parsed."""


class AttemptFailed(ChurnServiceError):
    """A pool process failed in the middle of a message, with an unexpected error."""


class MetricsPortUnavailable(ChurnServiceError):
    """Another process has the port of the metrics, or the host is not an address of this machine."""


class Unavailable(ChurnServiceError):
    """A part of the service does not work now; the same request may succeed later."""


class BrokerUnavailable(Unavailable):
    """The broker did not confirm a message."""


class ResultStoreUnavailable(Unavailable):
    """The result store did not answer, or refused the command."""


class NotReplicated(ResultStoreUnavailable):
    """Too few replicas of the result store confirmed a write."""


class NoSpace(Unavailable):
    """The folder for temporary files is full, or cannot be written."""


class Overloaded(Unavailable):
    """Too many predictions wait; the client may try again after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
