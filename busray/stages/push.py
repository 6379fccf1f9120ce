"""`busray export --push-to-hub`: a verified export as a private data set of the Hugging Face hub.

The token is what huggingface_hub itself finds (HF_TOKEN, or what `hf auth login` keeps). It is no
setting, and no message repeats it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from busray.corpus.export import RECORDS
from busray.failures import plain_text, without_secrets
from busray.records import HubError, StoppedForGood, UserError
from busray.storage import TEMPORARY_PREFIX, Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import DatasetInfo

FLAG = "--push-to-hub"
SIGN_IN = "set HF_TOKEN to one that may write, or sign in with `hf auth login`"
LEFT_OUT = [f"{RECORDS}/*", f"{TEMPORARY_PREFIX}*", f"*/{TEMPORARY_PREFIX}*"]
"""Files of an export that are of use here only: its records, and what a stopped one left."""
OF_THE_HUB = {".gitattributes", "README.md"}
"""What a new data set has from the hub itself."""


def check_push(repository: str, target: Store) -> None:
    """UserError where `repository` cannot take this export, before any work; HubError where the hub
    cannot be asked."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
        is_name = "/" in repository
    except HFValidationError:
        is_name = False
    if not is_name:
        raise UserError(f"{FLAG}={repository}: give OWNER/NAME, the name of a data set on the hub")
    if not target.local:
        raise UserError(f"{FLAG}: {target.url} is no folder of this machine: export into one to push it")
    api = _signed_in()
    try:
        with _asking("the hub does not say whose token this is", repository):
            api.whoami()
    except HubError as error:
        if error.status == 401:
            raise UserError(f"{FLAG}: the hub refuses the token: {SIGN_IN}") from error
        raise
    _find(api, repository)


def push(target: Store, repository: str) -> str:
    """The data set's address, when every file of a verified export is there. A push that was
    stopped goes on. Errors as of check_push; StoppedForGood where other files lie there."""
    api = _signed_in()
    there = _find(api, repository)
    if there is None:
        with _asking(f"cannot make the data set {repository}", repository):
            api.create_repo(repository, repo_type="dataset", private=True)
    else:
        _refuse_others(there, target, repository)
    with _asking(f"the push to {repository} has stopped", repository):
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=target.url,
            ignore_patterns=[*LEFT_OUT],
            commit_message="Export of busray",
        )
    return f"{api.endpoint}/datasets/{repository}"


def _signed_in() -> "HfApi":
    from huggingface_hub import HfApi, get_token

    with _asking("the hub gives no token", "it"):  # it is asked for one in a CI without a stored token
        token = get_token()
    if token is None:
        raise UserError(f"{FLAG}: there is no token of the hub: {SIGN_IN}")
    if not (token.isascii() and token.isprintable()):
        # The client would repeat such a token in its error.
        raise UserError(f"{FLAG}: the token has characters that no token has: {SIGN_IN}")
    return HfApi(token=token)


def _find(api: "HfApi", repository: str) -> "DatasetInfo | None":
    """The data set, None where there is none. UserError where everybody can read it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _asking(f"the hub does not say whether there is {repository}", repository):
        try:
            there = api.dataset_info(repository)
        except RepositoryNotFoundError:
            return None
    if not there.private:
        raise UserError(
            f"{FLAG}: {repository} is public: make it private on the hub first, or name a new data set, "
            "which is made private"
        )
    return there


def _refuse_others(there: "DatasetInfo", target: Store, repository: str) -> None:
    """StoppedForGood where a reader would find more there than this export."""
    others = {file.rfilename for file in there.siblings or ()} - set(target.list()) - OF_THE_HUB
    if others:
        raise StoppedForGood(
            f"{FLAG}: {repository} holds {len(others)} files that are no part of this export, such as {min(others)}",
            "name a new data set, or delete them there, and run the command again",
        )


@contextmanager
def _asking(failed: str, repository: str) -> Iterator[None]:
    """HubError for whatever the hub's client raises, of which there are many kinds."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = without_secrets(getattr(error, "server_message", None) or plain_text(error))
        fix = "check the network, HF_ENDPOINT and whether the hub is up"
        if status in (401, 403):
            fix = f"give a token that may write to {repository}: {SIGN_IN}"
        raise HubError(f"{failed}: {f'{status}: ' if status else ''}{said}", fix, status) from error
