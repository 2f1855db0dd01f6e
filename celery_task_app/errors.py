"""What can go wrong, as one tree. HTTP codes are app.py's business.

ChurnServiceError
├── DataSetError              the training data is not there or not what it should be
├── ModelError                the model can't be used at all: the worker stops
│   ├── ArtifactMissing         no file
│   ├── ArtifactCorrupt         truncated, tampered with, or not a model
│   ├── VersionMismatch         made with other versions of its libraries
│   └── GoldenRowMismatch       it does not predict what its manifest says that it predicts
├── BadBody                   a request's body can't be read
│   ├── BodyTooLarge            longer than allowed
│   ├── NotJSON                 its syntax or its encoding is wrong
│   └── NotJSONType             it is said to be something else
├── PredictionError           this customer can't be predicted; others can
│   ├── FeatureMismatch         a feature that the pipeline was trained on is missing
│   ├── InvalidPrediction       the model's answer is not a probability
│   └── TooManyAttempts         every attempt lost its process or ran out of time
├── Withdrawn                 there is no prediction, and there will be none
│   ├── Deleted                 the client wanted it so
│   └── Expired                 it was not computed within its deadline
├── IdempotencyError          the Idempotency-Key can't be honoured
│   ├── KeyReused               it stands for another body
│   └── KeyInUse                the request that it was first sent with is still being accepted
├── BatchError                a batch can't be taken as it was sent
│   ├── MalformedBatch          not the CSV or JSON that it should be
│   ├── BatchTooLarge           more bytes or rows than a batch may have
│   └── RowsRefused             rows that are not customers
└── Unavailable               nothing is wrong with the request: try again later
    ├── BrokerUnavailable       the queue did not confirm
    ├── ResultStoreUnavailable  the results can't be read or written
    └── Overloaded              more waits than this process or the queue takes
"""

from collections.abc import Sequence


class ChurnServiceError(Exception):
    """Root of every error that this service raises on purpose."""


class DataSetError(ChurnServiceError):
    """The training data is missing, or lacks what training needs."""


class ModelError(ChurnServiceError):
    """The model can't be used at all."""


class ArtifactMissing(ModelError):
    """There is no file where the model should be."""


class ArtifactCorrupt(ModelError):
    """The file is not the one that its manifest describes, or holds no model."""


class VersionMismatch(ModelError):
    """The installed libraries are not the versions that the model was made with."""


class GoldenRowMismatch(ModelError):
    """The model predicts a customer of its manifest otherwise than when it was made."""


class BadBody(ChurnServiceError):
    """The body of a request can't be read."""


class BodyTooLarge(BadBody):
    """The body is longer than its route reads."""


class NotJSON(BadBody):
    """The body is not a JSON text (RFC 8259), or one whose meaning is anyone's guess."""


class NotJSONType(BadBody):
    """The request says that its body is not JSON, or not what it is."""


class PredictionError(ChurnServiceError):
    """One customer can't be predicted."""


class FeatureMismatch(PredictionError):
    """A customer lacks a feature that the pipeline was trained on."""


class InvalidPrediction(PredictionError):
    """The model answered with something that is not one probability for each customer."""


class TooManyAttempts(PredictionError):
    """The process was lost, or its time was up, at every attempt to predict this customer."""


class Withdrawn(ChurnServiceError):
    """There is no prediction, and there will be none."""


class Deleted(Withdrawn):
    """The client deleted it, before or after it was computed."""


class Expired(Withdrawn):
    """It was not computed within its deadline."""


class IdempotencyError(ChurnServiceError):
    """An Idempotency-Key can't be honoured."""


class KeyReused(IdempotencyError):
    """It stands for another body."""


class KeyInUse(IdempotencyError):
    """The request that it was first sent with is still being accepted."""


class BatchError(ChurnServiceError):
    """A batch can't be taken as it was sent."""


class MalformedBatch(BatchError):
    """The body is not the CSV or JSON that it should be."""


class BatchTooLarge(BatchError):
    """The body has more bytes, or more rows, than a batch may have."""


class RowsRefused(BatchError):
    """Rows of it are not customers: `count` of them, the first of which are `listed`."""

    def __init__(self, message: str, count: int, listed: Sequence[object]) -> None:
        super().__init__(message)
        self.count = count
        self.listed = listed


class Unavailable(ChurnServiceError):
    """A part of the service can't do its work now; the same request may succeed later."""


class BrokerUnavailable(Unavailable):
    """The broker did not confirm a message."""


class ResultStoreUnavailable(Unavailable):
    """The result store did not answer, or refused."""


class Overloaded(Unavailable):
    """More predictions wait than this process, or the queue, takes; after `retry_after_s` seconds there may be room."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
