"""Contract tests and tiny models, for plugin authors and for the library itself."""

from tailorlib.testing.contracts import (
    check_compensation,
    check_fitness,
    check_merge_operation,
    check_optimizer,
    check_scheduler,
    check_search_space,
    fake_trial,
)

__all__ = [
    "check_compensation",
    "check_fitness",
    "check_merge_operation",
    "check_optimizer",
    "check_scheduler",
    "check_search_space",
    "fake_trial",
]
