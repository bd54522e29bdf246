"""Models on the Hugging Face hub: names such as hf://OWNER/NAME@REVISION, download and upload.

The hub's client finds the token (`hf auth login` or HF_TOKEN) and obeys HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE.
Downloads are JSON files, safetensors weights and tokenizers only: code and pickles in a repository are not downloaded.
"""

import functools
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from nanochat_lit.common.downloads import locked
from nanochat_lit.common.errors import UserError, os_error_text
from nanochat_lit.common.paths import cache_folder, read_json
from nanochat_lit.engine.export_folder import EXPORT_FILES, check_files, copy_export
from nanochat_lit.engine.hf_import import HF_FILES, OWN_FOLDER, import_hf
from nanochat_lit.model.export import CONFIG_FILE, read_config
from nanochat_lit.tokenizer.tokenizer import MODEL_FILES

SCHEME = "hf://"
_FILES = ["*.json", "*.safetensors", *MODEL_FILES, *(f"{OWN_FOLDER}/{name}" for name in ("*.json", *MODEL_FILES))]
"""Patterns of the files to download."""


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Raises:
        UserError: If the name is not OWNER/NAME.
    """

    repo: str
    """OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; None is main."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", self.repo) or ".." in self.repo:
            raise UserError(f"{self.repo!r} is not the name of a model on the hub; give OWNER/NAME")

    @classmethod
    def parse(cls, name: str) -> "HubModel":
        """Return the model of a name OWNER/NAME[@REVISION], with or without hf://."""
        repo, _, revision = name.removeprefix(SCHEME).partition("@")
        return cls(repo, revision or None)

    @property
    def run_folder(self) -> Path:
        """Local folder of the model by default: runs/NAME."""
        return Path("runs") / self.repo.split("/")[1]

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}{'' if self.revision is None else f'@{self.revision}'}"


@functools.lru_cache  # a process asks several times for its model and should always get the same commit
def fetch_model(model: HubModel) -> Path:
    """Return the export of a model, downloaded and converted once per commit into the cache folder.

    Raises UserError if it does not exist, needs a token, cannot be downloaded, or is not a model of nanochat-lit.
    """
    files = _download(model)
    owner, name = model.repo.split("/")
    export = cache_folder() / "models" / owner / files.name / name  # its last part names the model in `serve`
    with locked(export.parent / ".lock"):
        if not export.is_dir():
            convert(model, files, export)
    return export


def pull_model(model: HubModel, out: str | Path) -> None:
    """Write a model as an export, which may exist; raises as `fetch_model`, or if `out` has other contents."""
    convert(model, _download(model), Path(out))


def convert(model: HubModel, files: Path, out: Path) -> None:
    """Write the export of a downloaded repository: a Hugging Face folder, or an export.

    Raises:
        UserError: If it is not a model of nanochat-lit, or `out` has other contents.
    """
    try:
        config = read_json(files / CONFIG_FILE)
        if isinstance(config, dict) and "model_type" in config:
            import_hf(files, out)
            return
        read_config(files)
        check_files(files)
    except UserError as error:
        if str(out) in str(error):  # about the target
            raise
        reason = str(error).replace(f"{files}/", "").replace(str(files), "it")
        raise UserError(f"{model} is not a model that nanochat-lit can read: {reason}") from None
    copy_export(files, out)


def _download(model: HubModel) -> Path:
    """Return the folder of a commit in the client's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.repo, revision=model.revision, allow_patterns=_FILES))
    except Exception as error:  # noqa: BLE001 - the client's HTTP library has errors of its own
        raise _explained(error, model, "download") from None


def push_folder(folder: Path, model: HubModel, private: bool) -> str:
    """Upload a folder as one commit and return its URL; files of earlier pushes that it lacks are removed.

    The model, and its branch `revision`, are created if necessary. With `private` an existing model must be private
    already. Raises UserError if a token is missing or has no permission, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    api, branch = HfApi(), model.revision or "main"
    if get_token() is None:
        raise UserError(f"{model.repo} cannot be uploaded without a token; run `hf auth login`, or set HF_TOKEN")
    sent = files_of(folder)
    try:
        api.create_repo(model.repo, private=private, exist_ok=True)
        if private and not api.model_info(model.repo).private:
            raise UserError(f"{model.repo} exists and is public; make it private in its settings, or omit --private")
        if model.revision is not None:
            api.create_branch(model.repo, branch=branch, exist_ok=True)
        present = api.list_repo_files(model.repo, revision=branch)
        ours = {*HF_FILES, *EXPORT_FILES, *MODEL_FILES} - {"README.md"}  # what a push writes
        stale = [name for name in present if name not in sent and name.split("/")[0] in ours]
        changes = [CommitOperationDelete(path_in_repo=name) for name in stale]
        changes += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sent]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # advice on the card's metadata, such as a missing licence
            done = api.create_commit(model.repo, changes, commit_message="nanochat-lit push", revision=branch)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise _explained(error, model, "upload") from None
    return done.commit_url


def files_of(folder: Path) -> dict[str, int]:
    """Return the sizes of a folder's files by relative path, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _explained(error: Exception, model: HubModel, action: str) -> UserError:
    """Return one line on an error of the client: what failed and what to do."""
    from huggingface_hub import constants, errors, get_token

    if not isinstance(error, errors.HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # which the client wraps in an error on its cache or on several uploads
    if isinstance(error, OSError) and (text := os_error_text(error)):
        return UserError(text)
    server = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{model.repo} has no revision {model.revision!r} on {server}")
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{model.repo} requires permission: request it at {server}/{model.repo}, then set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        advice = "if it is private, run `hf auth login` or set HF_TOKEN"
        if get_token():
            advice = (
                f"the token {'needs write permission for its owner' if action == 'upload' else 'may not access it'}"
            )
        return UserError(f"{model.repo} does not exist on {server}, or access is denied; check the name; {advice}")
    reason = " ".join(str(error).split())[:200]
    if status is None and not isinstance(error, errors.HfHubHTTPError):
        reason = f"{type(error).__name__}: {reason}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    return UserError(f"{model.repo}: {action} from {server} failed ({reason})".replace("upload from", "upload to"))
