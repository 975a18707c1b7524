"""Errors that a user reads: each one sentence saying what, where and how to mend it."""

from __future__ import annotations


class GeostudioError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidRequest(GeostudioError):
    """A request (or model, or file) refused before any work: nothing was written.

    Attributes:
        field: dotted path of the offending field, such as ``spatial_domain.bbox``.
        problem: what is wrong with it, as a clause.
        remedy: what to send instead, as a clause.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field}: {problem}; {remedy}.")


class NotFound(GeostudioError):
    """A request, task, model or artifact that the catalog does not hold."""


class Forbidden(GeostudioError):
    """Something that is known to the one who asks, but that only others may do."""


class Unavailable(GeostudioError):
    """The catalog or the data folder is out of reach; nothing was written."""


class Conflict(GeostudioError):
    """A change that the current state does not allow, such as cancelling a finished request."""


class LeaseLost(GeostudioError):
    """Another run took the work over; this one must drop its result without committing it."""


class TaskError(GeostudioError):
    """One task's failure: recorded on the task, never raised out of a shard.

    Attributes:
        code: short stable name such as ``not_found``, ``not_a_raster``, ``too_few_bands``.
        retryable: whether the same work may succeed later (network, storage) or never will.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(message)


class Cancelled(GeostudioError):
    """The work was stopped on request; nothing of it was kept."""
