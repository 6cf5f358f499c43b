"""Single files of the hub, and what its errors mean: no such model, private, gated, a wrong token, out of reach.

Libraries raise many classes for these, and wrap them in others. Here the chain of an error is read once.
"""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)

from randcond.launch.errors import UserError

_CLIENTS = {
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "requests",
    "urllib3",
}  # packages whose errors are the network's
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_FOLDER = "or give a folder on this machine"


def hub_file(name: Path | str, file: str) -> Path:
    """Returns one file of a hub id, out of the hub's cache if the hub is out of reach.

    Asks once before the download, which would ask again for half a minute. Only a busy hub is asked again. Raises
    UserError with the reason if the hub refuses, and ConnectionError if it is out of reach.
    """
    try:
        try:
            get_hf_file_metadata(hf_hub_url(str(name), file), timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:
            cached = try_to_load_from_cache(str(name), file)
            if isinstance(cached, str):
                return Path(cached)
            if not any(_is_busy(_status(each)) for each in _chain(error)):
                raise
        return Path(hf_hub_download(str(name), file))
    except Exception as error:  # of the hub's client, of its HTTP library, of this disk
        raise hub_failure(str(name), error) from None


def hub_failure(name: str, error: Exception) -> Exception:
    """Returns the error to raise for a model that could not be read from the hub, in one line that says why.

    `name`: OWNER/NAME. A UserError if another try would end the same way, a ConnectionError if it may succeed. An error
    of this machine's disk comes back as it is.
    """
    chain = list(_chain(error))
    if refusals := [each for each in chain if _status(each) >= 400]:
        return _refused(name, getattr(refusals[0], "response"), chain)  # noqa: B009 (of several classes)
    if constants.is_offline_mode() or any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return UserError(
            f"{name}: not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; unset it, {_FOLDER}"
        )
    if any(isinstance(each, HFValidationError) for each in chain):
        return UserError(f"{name}: no hub id; expected OWNER/NAME, {_FOLDER}")
    for each in chain:
        if isinstance(each, OSError) and each.errno in _UNWRITABLE:
            return UserError(
                f"{name}: can't be stored: {each.filename or constants.HF_HUB_CACHE} can't be written "
                f"({each.strerror}); set HF_HOME to a folder that can"
            )
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return each
        if isinstance(each, ImportError):  # a proxy of a kind that needs a further package
            return UserError(f"{name}: {_line(each)}")
    if network := [each for each in chain if _is_of_network(each)]:
        return ConnectionError(
            f"{name}: can't reach {constants.ENDPOINT} ({_line(network[-1])}); check the network, https_proxy and "
            f"HF_ENDPOINT, {_FOLDER}"
        )
    return UserError(f"{name}: could not be downloaded from {constants.ENDPOINT} ({_line(error)}); {_FOLDER}")


def is_of_hub(error: Exception) -> bool:
    """Returns True if an error, or one that it came from, is a refusal of a server, or of the network."""
    return any(
        isinstance(each, OfflineModeIsEnabled) or getattr(each, "response", None) is not None or _is_of_network(each)
        for each in _chain(error)
    )


def _refused(name: str, answer: Any, chain: list[BaseException]) -> Exception:
    """Returns the error for an answer with a status of 400 or more. `answer`: of the hub client's HTTP library."""
    hub, status = constants.ENDPOINT, answer.status_code
    code, said = (answer.headers.get(f"X-Error-{part}", "") for part in ("Code", "Message"))
    has_token = bool(get_token())
    if _is_busy(status):
        return ConnectionError(f"{name}: {hub} is busy or out of order ({status}); run the same command again later")
    if code == "GatedRepo":
        whose = "the account of your token" if has_token else "your account, and set HF_TOKEN to a token of it"
        return UserError(f"{name}: gated ({status}): open {hub}/{name}, accept its conditions with {whose}")
    if any(isinstance(each, RevisionNotFoundError) for each in chain) or code == "RevisionNotFound":
        return UserError(f"{name}: {hub} has no such revision of it ({status})")
    if any(isinstance(each, RemoteEntryNotFoundError) for each in chain) or code == "EntryNotFound":
        return UserError(f"{name}: {hub} has it, but without {answer.url.path.rpartition('/')[2]}; see its files there")
    if status == 401 and (has_token or said.startswith("Invalid credentials")):
        return UserError(
            f"{name}: {hub} does not accept your token (401), or has no such model; check the name, and set HF_TOKEN "
            f"to a valid token, or unset it for a public model"
        )
    if status in (401, 404):
        why = "or your token may not read it" if has_token else "or it is private, and HF_TOKEN is not set"
        return UserError(f"{name}: {hub} has no such model, {why} ({status}); check the name, {_FOLDER}")
    return UserError(f"{name}: {hub} refuses access ({status}{f': {said}' if said else ''}); check HF_TOKEN, {_FOLDER}")


def _status(error: BaseException) -> int:
    """Returns the status of the answer that an error is about, 0 if there is none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _is_busy(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _CLIENTS


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
