"""Converted weights uploaded to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError of its client
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public

from ijepa.errors import IjepaError

DENIED = {401: "the token is not valid", 403: "the token may not write there"}  # status of HTTP
MEND = "Create one with write access at https://huggingface.co/settings/tokens"


def check_push(name: str) -> None:
    """Refuse a push that cannot succeed, before weights are converted.

    Raises:
        IjepaError: `name` is not USER/NAME, or there is no token.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise IjepaError(f"--push {name} is not a name on the hub: {error}") from error
    if name.count("/") != 1:
        raise IjepaError(f"--push {name} does not say whose it is; write it as USER/{name}.")
    if get_token() is None:
        raise IjepaError(
            f"--push {name} needs a token of the Hugging Face Hub. {MEND}, then run `hf auth "
            f"login` or set HF_TOKEN."
        )


def push_folder(folder: Path, name: str, *, private: bool, leave_out: str) -> str:
    """Upload a folder as the model `name`, made if it is not there; its address.

    A new model is public unless `private`, or as the account's settings have it. `leave_out` is a
    file of the folder that stays here.

    Raises:
        IjepaError: no connection, or the hub refuses.
    """
    api = HfApi()
    try:
        repo = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            ignore_patterns=[leave_out],
            commit_message="Upload weights converted by ijepa",
        )
    except HfHubHTTPError as error:
        why = DENIED.get(error.response.status_code, " ".join(str(error).split()))
        mend = f" {MEND}." if error.response.status_code in DENIED else ""
        raise IjepaError(
            f"The hub refused --push {name} ({why}).{mend} The weights are in {folder}."
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise IjepaError(
            f"--push {name} did not reach {api.endpoint} ({why}). The weights are in {folder}; the "
            f"same command uploads them."
        ) from error
    return str(repo)
