"""Places: the paths and URLs that people write, and what is wrong with the text of one.

Nothing is opened here. A place is a folder or a file of this machine; the place of a run or of
adapters may also be in object storage.
"""

import os
import re
import shlex
import unicodedata
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that are not visible, or change how others are displayed."""

SECRET_PARAMETER = re.compile(r"(?i)[?&]([\w-]*(signature|token|secret|password|key)|sig)=")

PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs",
    "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
}  # fmt: skip
"""Scheme of object storage -> the package that opens it."""
EXTRAS = {"s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure"}
"""Package -> the extra of busray that installs it."""
SYNC = {
    "s3": "aws s3 sync {} FOLDER", "s3a": "aws s3 sync {} FOLDER",
    "gs": "gcloud storage rsync -r {} FOLDER", "gcs": "gcloud storage rsync -r {} FOLDER",
}  # fmt: skip
"""Scheme -> the command that copies its objects into a folder of this machine."""

VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}|arn:.+")
AZURE = re.compile(r"[A-Za-z0-9$][A-Za-z0-9-]*(@[\w.-]+)?")
LONGEST_NAME = 255
"""Bytes of a file's name on the file systems that people use."""

LONGEST_PATH = 3000
"""Bytes of a path; Linux allows 4096, with the names of a run's objects."""


def hidden_character(name: str) -> str | None:
    """What in a name could mislead a reader or a program: the first control, bidirectional or
    zero-width character, or letters that are not composed; None if there is nothing."""
    for character in name:
        if unicodedata.category(character) in HIDDEN_CATEGORIES:
            return f"the character U+{ord(character):04X}"
    # Of names that look the same, one may be composed and another not: they would be two.
    composed = unicodedata.is_normalized("NFC", name)
    return None if composed else "letters that are not composed (Unicode NFC)"


def credentials_in(text: str) -> bool:
    """Whether a URL in text has a password, a token or a signature in it. A port is none, nor are
    an access point's ARN, the container of `abfs://container@account` or `sftp://user@host`."""
    for scheme, host, path in re.findall(r"(\w{0,20})://([^/?#]*)([^?#]*)", text):
        user, at, _ = host.rpartition("@")
        port = host.rpartition(":")[2]
        # user:password@host anywhere; with http even a user alone may be a token.
        if at and (":" in user or scheme.lower() in ("http", "https")):
            return True
        # A secret may contain a slash: the `@` is then in what looks like the path.
        plain = ":" not in host or host.startswith("arn:") or host.endswith("]")  # [IPv6]
        if not at and not plain and (not port.isdigit() or "@" in path):
            return True
    return SECRET_PARAMETER.search(text) is not None


def expand(place: str) -> str:
    """The place with `~`, `$NAME` and `${NAME}` filled in from the environment.

    ValueError names a variable that is not set, and a user that does not exist.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2] or ""
        if not os.environ.get(name):
            state = "is empty" if name in os.environ else "is not set"
            raise ValueError(f"the variable {found[0]} {state}: set it, or write the path out")
        return os.environ[name]

    filled = VARIABLE.sub(value, place)
    if not filled.startswith("~"):
        return filled
    home = os.path.expanduser(filled)
    if home.startswith("~"):
        user = filled.split("/")[0]
        raise ValueError(f"there is no user {user}: write the folder out, or ./{user} if it is a name")
    return home


def problem(place: str, *, url: bool = True) -> str | None:
    """What is wrong with the text of a place, and what to write instead; None if it is one.

    url: it may be in object storage; else only a path of this machine will do.
    """
    if not place.strip():
        return "it is empty: write a folder" + (", or a URL such as s3://BUCKET/PREFIX" if url else "")
    if credentials_in(place):
        return (
            "credentials in a URL end up in logs and records: leave them out, they come from the "
            "instance's role or the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID and so on)"
        )
    if place != place.strip():
        return f"a space at its start or end: write {place.strip()}"
    hidden = hidden_character(place)
    if hidden:
        return f"it contains {hidden}: use visible characters"
    found = SCHEME.fullmatch(place)
    if found is None:
        return _problem_of_path(place)
    scheme, rest = found[1], found[2]
    if ".." in place.split("/"):
        return "a URL with `..` in it: write the folder that it leads to"
    if scheme.lower() == "file":
        return _problem_of_file_url(scheme, rest, url)
    if not url:
        return _needs_a_copy(scheme.lower(), place)
    return _problem_of_url(scheme, rest)


def local_path(place: str) -> str:
    """The path of a local place, which may be written `file:///PATH`."""
    return place.removeprefix("file://")


def is_url(place: str) -> bool:
    """Whether a place is in object storage, not a path of this machine."""
    return "://" in place and not place.startswith("file://")


def contains(outer: str, inner: str) -> bool:
    """Whether the local place `inner` is `outer` or lies below it, links followed."""
    paths = [os.path.realpath(local_path(place)) for place in (outer, inner)]
    return os.path.commonpath(paths) == paths[0]


def _problem_of_path(path: str) -> str | None:
    if "::" in path and "://" in path:
        return "a chain of stores (`::`) is not supported: write one URL, such as s3://BUCKET/PREFIX"
    drive = re.match(r"([A-Za-z]):[\\/]", path)
    if drive:
        below = path[3:].replace("\\", "/")
        where = f"under WSL it is /mnt/{drive[1].lower()}/{below}"
        return f"a path of Windows, and busray runs on Linux and macOS: {where}"
    if path.startswith("\\\\"):
        return "a path of a Windows share: mount it, and write the folder where it is mounted"
    if "\\" in path:
        plain = path.replace("\\ ", " ").replace("\\", "/")
        return f"a backslash in a path: write {plain}"
    scheme = re.match(r"(file|s3a?|gs|gcs|az|abfss?|memory|https?|minio|hf):/*", path, re.IGNORECASE)
    if scheme:
        name, rest = scheme[1].lower(), path[scheme.end() :]
        right = f"/{rest}" if name == "file" else f"{name}://{rest or 'BUCKET/PREFIX'}"
        return f"a URL is written with `://`: write {right}"
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in path.split("/")):
        return f"a name in it has more than {LONGEST_NAME} bytes: write a shorter one"
    if len(os.fsencode(path)) > LONGEST_PATH:
        return f"it has more than {LONGEST_PATH} bytes: write a shorter one"
    return None


def _problem_of_file_url(scheme: str, rest: str, url: bool) -> str | None:
    path = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    if path.startswith("/") and path.strip("/"):
        right = unquote(path)
    else:
        right = f"/{path}" if path.strip("/") else "the folder's path, such as /data/runs"
    if scheme != "file" or not rest.startswith("/") or not rest.strip("/") or not url or right != rest:
        return f"a place on this machine is written as a path, without file://: write {right}"
    return _problem_of_path(rest)


def _needs_a_copy(scheme: str, place: str) -> str:
    copy = f" (`{SYNC[scheme].format(place)}`)" if scheme in SYNC else ""
    return f"it is read from this machine's disk, not from a URL: copy it to a folder{copy} and name that"


def _problem_of_url(scheme: str, rest: str) -> str | None:
    name, whole = scheme.lower(), f"{scheme}://{rest}"
    if "::" in scheme + rest and not rest.startswith("arn:"):
        return "a chain of stores (`::`) is not supported: write one URL, such as s3://BUCKET/PREFIX"
    if name not in PACKAGES:
        return _instead_of(name, rest, whole)
    if scheme != name:
        return f"a scheme is written in small letters: write {name}://{rest}"
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        first = prefix.strip("/") or "BUCKET/PREFIX"
        return f"there is no bucket between `://` and the next `/`: write {name}://{first}"
    host, _, port = bucket.rpartition(":")
    if host and port.isdigit() and not bucket.startswith("arn:"):
        return _server(f"http://{bucket}", prefix)
    allowed = AZURE if PACKAGES[name] == "adlfs" else BUCKET
    if not allowed.fullmatch(bucket):
        return f"{bucket!r} is no name of a bucket: letters, digits, `-` and `.`, as in {name}://BUCKET/PREFIX"
    if "//" in prefix.rstrip("/") or prefix.startswith("/"):
        parts = [part for part in rest.split("/") if part]
        return f"two slashes in a row: write {name}://{'/'.join(parts)}"
    package = PACKAGES[name]
    if find_spec(package) is None:
        return (
            f"{name}:// needs the package {package}: `pip install 'busray[{EXTRAS[package]}]'`, then "
            f"`busray doctor {shlex.quote(whole)}`"
        )
    return None


def _server(endpoint: str, path: str) -> str:
    bucket = path.strip("/") or "BUCKET/PREFIX"
    return (
        f"the server's address does not belong in the URL: set AWS_ENDPOINT_URL_S3={endpoint} and write s3://{bucket}"
    )


def _instead_of(scheme: str, rest: str, whole: str) -> str:
    """What to write instead of a URL of a scheme that no run can be on."""
    known = "a folder, or a URL of object storage: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"
    host, _, path = rest.partition("/")
    if scheme in ("http", "https"):
        return _instead_of_http(urlsplit(whole).hostname or "", host, path.partition("?")[0], scheme)
    if scheme in ("minio", "ceph", "swift", "oss", "cos", "obs", "r2", "b2", "wasabi"):
        return f"{scheme}:// is not known: {_server(f'http://{host}' if path else 'http://HOST:PORT', path)}"
    if scheme in ("wasb", "wasbs", "adl", "azure"):
        return f"{scheme}:// is not known: write az://CONTAINER/PREFIX, with AZURE_STORAGE_ACCOUNT_NAME set"
    if scheme == "hf":
        return "a run cannot be on the Hugging Face hub: write a folder, and upload what is finished"
    if scheme == "memory":
        return f"memory:// is lost when the command ends, and no other process sees it: write {known}"
    return f"{scheme}:// is not supported: write {known}"


def _instead_of_http(host: str, netloc: str, path: str, scheme: str) -> str:
    amazon = re.fullmatch(r"(?:(.+)\.)?s3[.-](?:[\w-]+\.)?amazonaws\.com", host)
    if amazon:
        parts = [amazon[1] or "", path.strip("/")]
        return f"https:// is not supported: write s3://{'/'.join(part for part in parts if part)}"
    if host == "storage.googleapis.com":
        return f"https:// is not supported: write gs://{path.strip('/')}"
    azure = re.fullmatch(r"([\w-]+)\.(?:blob|dfs)\.core\.windows\.net", host)
    if azure:
        fix = f"set AZURE_STORAGE_ACCOUNT_NAME={azure[1]} and write az://{path.strip('/') or 'CONTAINER/PREFIX'}"
        return f"https:// is not supported: {fix}"
    if host in ("huggingface.co", "hf.co"):
        return "a run cannot be on the Hugging Face hub: write a folder, and upload what is finished"
    return f"{scheme}:// is not supported. For an S3 server there, {_server(f'{scheme}://{netloc}', path)}"
