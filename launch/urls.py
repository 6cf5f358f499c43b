"""Shows URLs without their secrets: user, password, query and fragment come off.

Everything that is written or printed passes through here: manifests, configurations beside artefacts, logs, errors,
reports, folder names and model cards.
"""

import base64
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

TAKEN_OFF = "?..."  # stands for the query of a URL
HIDDEN = "[hidden]"  # stands for a secret that is not in a URL
VEIL = "RANDCOND_SECRET_"  # environment variables by which a command gives secrets to the stages that it starts

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NEXT = r",['\"]?[A-Za-z][A-Za-z0-9+.-]{0,30}://"  # of a list without blanks
_IN_TEXT = re.compile(rf"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{{0,30}})://((?:(?!{_NEXT})\S)+)")
_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::))")  # not the :: of an IPv6 address
_END_IN_TEXT = re.compile(r"['\"<>`|\\]")
_PUNCTUATION = ".,;:!)]"  # after a URL in a sentence
_BARE_HOST = re.compile(r"(?:\[[^\]]*\]|[^@:/?#]*)(?::\d+)?[.,;:!)\]]*")
_PORT = re.compile(r"\d*(?:['\"<>`|\\,;)\]].*)?", re.DOTALL)
_UNQUOTED = re.compile(r"(?!localhost:)[^.:@/?#\[\]]+:\d+[/?#][^@'\"<>`|\\,;]*[^@/]@[^@/]")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_WEB = {"http", "https"}  # here # starts a fragment, and ? always a query
_LOCAL = {"file", "local", "memory"}
_CONTAINERS = {"abfs", "abfss", "adl", "az", "wasb", "wasbs"}  # container@account
_SECRET_PARAMETER = re.compile(
    r"(?i)(?:^|[-_])(?:sig|signature|token|key|apikey|secret|password|passwd|pwd|auth|credentials?|code|jwt)$"
)
_HARMLESS = {  # parameters, in lower case: of Azure, of AWS, of downloads
    *("sv", "st", "se", "sr", "sp", "spr", "srt", "ss"),
    *("x-amz-algorithm", "x-amz-date", "x-amz-expires", "x-amz-signedheaders"),
    *("download", "dl", "raw", "alt", "ref", "version", "format"),
}
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|APIKEY|CREDENTIALS)$")
_ORDINARY = re.compile(r"[a-z_]{1,15}")  # a word in a variable such as SORT_KEY
_URL_KEYS = ("url", "from", "source")  # keys of stored data whose value is one URL, in which blanks may stand
_SHORTEST = 8  # characters of a secret that is also hidden outside URLs; a shorter one may be an ordinary word
_SHORTEST_USER = 16  # the same of a user without a password, which is a token or only a name
_remembered: set[str] = set()

# user:password or a query, whether it is a query -> what stands in its place; None: nothing
Replacement = Callable[[str, bool], str | None]


def show_url(url: str, keep_variables: bool = False) -> str:
    """Returns a URL as it may be written and printed: without user, password, query and fragment.

    `?...` stands for a query that was taken off. A text that is no URL comes back as it is, and so does a path on this
    machine. `keep_variables`: a query or a user that consists of `${NAME}` stays, because it only names a variable.

    >>> show_url("https://me:secret@host:8000/a.csv?sig=abc#top")
    'https://host:8000/a.csv?...'
    >>> show_url("filecache::s3://bucket/part-?.parquet")
    'filecache::s3://bucket/part-?.parquet'
    """
    return _show_chain(
        url, lambda part, is_query: part if keep_variables and _names_variables(part, is_query) else None
    )


def hide_secrets(text: str) -> str:
    """Returns a text with every URL in it as `show_url` shows it, and without the secrets that this process knows.

    It knows those of the URLs that it has opened, and those in environment variables such as HF_TOKEN. Use it for the
    messages of libraries.

    >>> hide_secrets("503, message='Busy', url='https://me:secret@host/a?sig=1'")
    "503, message='Busy', url='https://host/a?...'"
    """
    text = _hide_urls(text)
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    return text


def _hide_urls(text: str) -> str:
    return _IN_TEXT.sub(_hide_match, text) if "://" in text else text


def without_secrets(data: Any) -> Any:
    """Returns plain data (of JSON or YAML) with each URL in it, keys included, as `show_url` shows it.

    Other texts stay as they are, even if they hold a word that is also a secret: stored data decide identities.
    """
    if isinstance(data, str):
        return _hide_urls(data)
    if isinstance(data, Mapping):
        urls = {key: show_url(data[key]) for key in _URL_KEYS if isinstance(data.get(key), str)}
        return {without_secrets(key): without_secrets(value) for key, value in {**data, **urls}.items()}
    return [without_secrets(value) for value in data] if isinstance(data, list | tuple) else data


def shown_settings(data: Any) -> Any:
    """Returns plain data with each URL as `show_url` shows it. `${NAME}` stays, so that the data can be used again."""
    if isinstance(data, str):
        return show_url(data, keep_variables=True)
    if isinstance(data, Mapping):
        return {key: shown_settings(value) for key, value in data.items()}
    return [shown_settings(value) for value in data] if isinstance(data, list | tuple) else data


def veil(data: Any, environment: dict[str, str]) -> Any:
    """Returns plain data with `${NAME}` for the secrets of URLs, and adds these variables to `environment`.

    So a command can start stages without secrets in their arguments. `open_system` puts the values in their places.
    """

    def name(secret: str, is_query: bool) -> str:
        if _names_variables(secret, is_query):
            return secret
        secret = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), secret)
        known = {value: key for key, value in environment.items() if key.startswith(VEIL)}
        variable = known.get(secret, f"{VEIL}{len(known) + 1}")
        environment[variable] = secret
        return f"${{{variable}}}"

    if isinstance(data, str):
        return _show_chain(data, name)
    if isinstance(data, Mapping):
        return {key: veil(value, environment) for key, value in data.items()}
    return [veil(value, environment) for value in data] if isinstance(data, list | tuple) else data


def remember(url: str) -> None:
    """Makes `hide_secrets` hide the secrets of this URL wherever they stand: a server may repeat them in an error."""

    def note(secret: str, is_query: bool) -> None:
        user, colon, password = secret.partition(":")
        header = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        if is_query:
            parts = [secret, unquote(secret)]
            parts += [value for name, value in parse_qsl(secret) if _is_secret(name)]
        elif colon:
            parts = [secret, unquote(secret), password, unquote(password), header]
        else:
            parts = [user, unquote(user), header] if len(user) >= _SHORTEST_USER else [header]
        for each in parts:
            remember_secret(each)

    _show_chain(url, note)


def remember_secret(secret: str) -> None:
    """Makes `hide_secrets` hide this text wherever it stands, for example an API key."""
    if len(secret) >= _SHORTEST:
        _remembered.add(secret)


def _names_variables(part: str, is_query: bool) -> bool:
    """Returns True for a user and password, or a query, whose secrets are environment variables named by the user.

    Beside them may stand a user's name and parameters that are no secrets, as in `me:${PASS}` and `sv=1&sig=${SIG}`.
    Of other parameters nobody knows.
    """
    if VEIL in part or not _VARIABLE.search(part):
        return False
    if is_query:
        parameters = [each.partition("=")[::2] for each in part.split("&")]
        return all(_VARIABLE.fullmatch(value or name) or name.lower() in _HARMLESS for name, value in parameters)
    return bool(_VARIABLE.fullmatch(part.rpartition(":")[2]))


def _is_secret(parameter: str) -> bool:
    return bool(_SECRET_PARAMETER.search(parameter))


def _known_secrets() -> list[str]:
    """Returns the secrets that this process knows, the longest first because one may contain another."""
    own = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and (_SECRET_VARIABLE.search(name) or name.startswith(VEIL))
        and not (name.endswith("KEY") and (_ORDINARY.fullmatch(value) or os.path.lexists(value)))
    }
    return sorted(_remembered | own, key=len, reverse=True)


def _hide_match(match: re.Match[str]) -> str:
    """Returns a URL found in a text without its secrets, and what follows it without a blank.

    A host with a port but no dot in its name, and then an @, may be a user and a password, as in `me:12/34@host`. Here
    they are hidden. Where a URL is stored they are not: `minio:9000/a@b.csv` must keep its host.
    """
    bare = _BARE_HOST.fullmatch(_END_IN_TEXT.split(match[2], maxsplit=1)[0])  # 'http://host:8000', and more
    user, rest = ("", match[2]) if bare else _split_user(match[1].lower(), match[2])
    if not (bare or user) and _UNQUOTED.match(rest):
        rest = rest.partition("@")[2]
    url = _END_IN_TEXT.split(rest, maxsplit=1)[0]
    bare_url = url.rstrip(_PUNCTUATION)
    url = f"{bare_url}..." if bare_url.endswith("?") and url.startswith("...", len(bare_url)) else bare_url
    after = rest[len(url) :]
    shown = show_url(f"{match[1]}://{f'{user}@' if user else ''}{url}", keep_variables=True)
    return shown + _IN_TEXT.sub(_hide_match, after)


def _show_chain(url: str, instead: Replacement) -> str:
    """Returns a URL, chained or not, with its secrets replaced by what `instead` returns for them."""
    return "::".join(_show(part, instead) for part in _CHAIN.split(url)) if "://" in url else url


def _show(url: str, instead: Replacement) -> str:
    match = _URL.fullmatch(url)
    if match is None or match[1].lower() in _LOCAL:
        return url
    user, rest = _split_user(match[1].lower(), match[2])
    path, query = _split_query(match[1].lower(), rest)
    kept = instead(user, False) if user else None
    shown = f"{match[1]}://{f'{kept}@' if kept else ''}{path}"
    if not query:
        return shown
    kept = None if query == TAKEN_OFF[1:] else instead(query, True)
    return f"{shown}?{kept}" if kept else f"{shown}{TAKEN_OFF}"


def _split_user(scheme: str, rest: str) -> tuple[str, str]:
    """Splits what follows `scheme://` into user:password ("" if there is none) and the rest.

    People write passwords with /, ? or # in them, although these must be quoted. A port that is no number shows it.
    """
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = host.rpartition("]")[2].partition(":")[2]  # after ]: the colons in an IPv6 address start no port
    if "@" in host:
        user = host.rpartition("@")[0]
    elif "@" in rest and not _PORT.fullmatch(port):
        user = rest.rpartition("@")[0]
    else:
        return "", rest
    if scheme == "github" or (scheme in _CONTAINERS and ":" not in user):  # github://owner:repository@branch
        return "", rest
    return user, rest[len(user) + 1 :]


def _split_query(scheme: str, rest: str) -> tuple[str, str]:
    """Splits the rest of a URL into its path and its query, and takes the fragment off.

    Outside the web, ? also stands for any character in a pattern of names, so only ?NAME=VALUE is a query.
    """
    if scheme in _WEB:
        path, _, query = rest.partition("#")[0].partition("?")
        return path, query
    path, _, query = rest.partition("?")
    return (path, query) if "=" in query or query == TAKEN_OFF[1:] else (rest, "")
