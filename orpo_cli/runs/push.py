"""Send a directory to the model hub."""

import os
from pathlib import Path
from typing import Any

from orpo_cli.errors import ConfigError, OrpoError, UnreachableError
from orpo_cli.quoting import in_one_line


def push(directory: Path, repository: str, public: bool) -> str:
    """Send a directory to a repository, which is made where there is none, and return its address.

    Args:
        repository: ORG/NAME.
        public: whether everybody may see a new one; one that everybody sees already is refused without it.
    Raises:
        ConfigError: if the repository is public, and `public` does not say so.
        UnreachableError: if the hub cannot be reached, or does not let this user in.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise ConfigError(
                f"push={repository}: this repository is public: public=true sends the model there all the same; "
                f"nothing was sent of {directory}"
            )
        api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Export of orpo")
    except OrpoError:
        raise
    except Exception as error:
        raise UnreachableError(
            f"push={repository}: {_reason(error)}; the export is in {directory}: try again with "
            f"`hf upload {repository} {directory}{'' if public else ' --private'}`"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "the model hub is not asked, since HF_HUB_OFFLINE is set"
    answer: Any = getattr(error, "response", None)
    if answer is not None and answer.status_code in (401, 403):
        return f"the model hub answers {answer.status_code}: log in with `hf auth login`, with a token that may write"
    if answer is not None:
        return f"the model hub answers {answer.status_code}: {in_one_line(error)}"
    return f"the model hub cannot be reached: {in_one_line(error)}"
