"""What the driver says, as errors of ours: whoever asked is told whether trying again may help."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from fhir_server.errors import TooLarge, Unavailable
from fhir_server.store.protocol import SnapshotGone

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MAX_TIME_EXPIRED = 50
SNAPSHOT_GONE = (239, 246)  # SnapshotTooOld; SnapshotUnavailable: the collection or an index is younger
# mongod stops, starts or steps down: ShutdownInProgress, PrimarySteppedDown, NoSuchTransaction, Interrupted…, NotPrimary…
AWAY = (91, 189, 251, 11600, 11601, 11602, 10107, 13435, 13436)
TOO_LARGE = (257, 10334)  # TransactionTooLargeForCache, BSONObjectTooLarge


def in_words(error: Exception, *, writing: bool = False) -> Exception:
    """A PyMongoError → Unavailable, TooLarge or SnapshotGone where that is what it means; any other error as it is."""
    if not isinstance(error, PyMongoError):
        return error
    if error.has_error_label("UnknownTransactionCommitResult"):
        return Unavailable("The database went away; read again to see whether the write was kept", retry_after=5)
    if isinstance(error, ConnectionFailure) or (isinstance(error, OperationFailure) and error.code in AWAY):
        text = "The database does not answer" + ("; nothing was written" if writing else "")
        return Unavailable(text, retry_after=5)
    if isinstance(error, OperationFailure) and error.code == MAX_TIME_EXPIRED:
        return Unavailable("The search took too long; narrow it, or try again later", retry_after=5)
    if isinstance(error, OperationFailure) and error.code in SNAPSHOT_GONE:
        return SnapshotGone()
    if isinstance(error, OperationFailure) and error.code in TOO_LARGE:
        return TooLarge("The resource, or the transaction as a whole, is larger than the database takes")
    return error


def answering(
    method: Callable[Parameters, Coroutine[Any, Any, Result]],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """For the store's reads: a database that is away is 503, not our fault with a stack trace."""

    @wraps(method)
    async def answered(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return await method(*args, **kwargs)
        except PyMongoError as error:
            raise in_words(error) from error

    return answered
