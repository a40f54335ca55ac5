"""Failures of the Hub, each in one line: what failed, where, and what to do about it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sae_lens_afa.loading.names import first_line

T = TypeVar("T")
# Seconds between attempts: a connection that was reset is there again at once, a busy server is not.
_PAUSES = (0.5, 1.0, 2.0)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
# Exceptions that huggingface_hub, its transfer library and the disk raise; anything else is a fault of this package.
_KNOWN = (OSError, RuntimeError, HFValidationError)
_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


class HubError(OSError):
    """Failure of a push, a download or a listing; the message says what, where, and what to do. It has no token in it.

    Example:
        >>> import sae_lens_afa as afa
        >>> try:  # doctest: +SKIP
        ...     afa.list_saes("owner/misspelt")
        ... except afa.HubError as error:
        ...     print(error)
        cannot read owner/misspelt: there is no such repository, or it is private and no token was sent: ...
    """


def attempt(action: Callable[[], T], doing: str, *, retry: bool = True) -> T:
    """Return the result of `action`; try again after passing failures of network and server.

    Args:
        action: A call of huggingface_hub.
        doing: How the error begins: "cannot read me/saes".
        retry: Try again after a passing failure; not for calls that may have had their effect.

    Raises:
        HubError: it failed.
    """
    for pause in (*_PAUSES, None):
        try:
            return action()
        except HubError:
            raise
        except Exception as error:
            if not isinstance(error, _KNOWN) and not _is_transport(error):
                raise
            if pause is None or not retry or not _is_passing(error):
                raise HubError(f"{doing}: {explain(error)}") from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def explain(error: Exception) -> str:
    """Say in one line why it failed and what to do."""
    status = _status(error)
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set and it is not in the cache; unset it, or download it once while online."
        case LocalTokenNotFoundError():
            return f"there is no Hugging Face token: {_LOGIN}."
        case GatedRepoError():
            return "the repository is gated: ask for access on its page, then " + _LOGIN + "."
        case RepositoryNotFoundError() if status == 401:
            return f"there is no such repository, or it is private and no token was sent: check the name, or {_LOGIN}."
        case RepositoryNotFoundError():
            return "there is no such repository, or the token's user may not see it: check the name and the token."
        case RevisionNotFoundError():
            return "there is no such revision: give a branch, a tag or a commit that exists."
        case LocalEntryNotFoundError() if _cause_with_status(error) is not None:
            return explain(_cause_with_status(error) or error)
        case LocalEntryNotFoundError():
            return "the Hub cannot be reached and it is not in the cache: check the connection (and HF_ENDPOINT)."
        case EntryNotFoundError():
            return "the repository has no such file."
        case _ if status is not None:
            return _explain_status(status, error)
        case OSError() if error.errno == errno.ENOSPC:
            return "no space left on the disk; free some (HF_HOME says where the cache is) and run it again."
        case _ if _is_transport(error):
            return f"the connection failed ({type(error).__name__}): check the network (and HF_ENDPOINT), run it again."
        case _:
            return first_line(error)


def _explain_status(status: int, error: Exception) -> str:
    said = f" ({message})" if (message := getattr(error, "server_message", None)) else ""
    match status:
        case 401:
            return f"the Hub does not accept the token (401): it is wrong or has expired; {_LOGIN}."
        case 403:
            return f"the token's user may not do that (403){said}: use a namespace of yours and a token that may write."
        case 409:
            return f"it conflicts with what is there (409){said}."
        case 412:
            return "somebody else has committed there meanwhile (412); nothing was changed, run it again."
        case 429:
            return "the Hub limits the rate of requests (429): wait a few minutes and run it again."
        case _ if status >= 500:
            return f"the Hub has a failure of its own ({status}): run it again later."
        case _:
            return f"the Hub answers {status}{said}."


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _cause_with_status(error: Exception) -> Exception | None:
    """Return the answer of the server behind huggingface_hub's "not in the cache"."""
    cause = error.__cause__
    return cause if isinstance(cause, Exception) and _status(cause) is not None else None


def _is_transport(error: Exception) -> bool:
    # huggingface_hub lets the exceptions of its HTTP library through; before 1.0 that was requests.
    return any(base.__module__.partition(".")[0] in _HTTP_LIBRARIES for base in type(error).__mro__)


def _is_passing(error: Exception) -> bool:
    status = _status(error) or (_status(cause) if (cause := _cause_with_status(error)) else None)
    if status is not None:
        return status in _BUSY
    if isinstance(error, LocalEntryNotFoundError):
        return isinstance(error.__cause__, Exception) and _is_transport(error.__cause__)
    if isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError, HFValidationError)):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return False
    # "Consistency check failed" of a truncated download has no class of its own; hf_xet raises RuntimeError.
    return _is_transport(error) or isinstance(error, RuntimeError) or "Consistency check" in str(error)
