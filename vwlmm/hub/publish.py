"""From a model's folder to a repository on the Hub: checked, with its card, and gone on with after an interruption.

publish("checkpoints/visual_words/4_final", "user/vw-llava")    # or: vwlmm publish MODEL REPO
"""

import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vwlmm.hub.facts import Facts, gather
from vwlmm.hub.screening import local_paths, optimiser_state, secrets
from vwlmm.hub.staging import stage
from vwlmm.weights.check import check_folder
from vwlmm.weights.folder import finished_folder


@dataclass
class PublishConfig:
    """How a model is published."""

    private: bool = False  # a new repository is private; False: as the account's settings have it
    revision: str | None = None  # branch, made if it is not there; None: main
    message: str = "Publish with vwlmm"
    licence: str | None = None  # Hub licence id of the whole; None: the parts' licences are listed
    results: list[Path] = field(default_factory=list)  # of vwlmm eval and vwlmm score
    image: Path | None = None  # shown with its visual words; None: a drawn one
    word_map: bool = True  # loads the model to draw it
    model_only: bool = False  # leave optimiser state where it is, instead of refusing
    token: str | None = field(default=None, repr=False)  # None: HF_TOKEN or the one of `hf auth login`


def publish(
    folder: str | Path, repo: str, config: PublishConfig | None = None, *, dry_run: str | Path | None = None
) -> tuple[str, list[str]]:
    """Publishes a model folder.

    Args:
        folder: of a model.
        repo: `user/name`, or `name` in the user's own space.
        config: see there.
        dry_run: write the folder that the Hub would get here, and upload nothing.

    Returns:
        The address, or the folder of a dry run; and the files of the folder that were left out.

    Raises:
        FileNotFoundError, FileExistsError: no model there; or something at `dry_run`.
        ValueError: a damaged file; optimiser state, a secret or a local path in the folder; a bad repository name.
        OSError: the upload did not come to its end; the same call goes on with it.
    """
    config = config or PublishConfig()
    folder = Path(folder)
    _check(folder, repo, config)
    facts = gather(folder, config.results)
    target = Path(dry_run) if dry_run is not None else None
    if target is not None:
        with finished_folder(target) as staged:
            left_out = _staged(folder, staged, repo, facts, config)
        return str(target), left_out
    token = config.token or _token()
    # Beside the model, so that its files get a second name and no copy.
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-publish-", dir=folder.resolve().parent))
    try:
        left_out = _staged(folder, staged, repo, facts, config)
        return _upload(staged, repo, config, token), left_out
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check(folder: Path, repo: str, config: PublishConfig) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as problem:
        raise ValueError(f"REPO is user/name, of letters, digits, '-', '_' and '.': {problem}") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"A model folder was expected at {folder}: there is none.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a model folder.")
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no safetensors weights: pickles are not published.")
    damaged = check_folder(folder)
    if damaged:
        raise ValueError(" ".join(damaged))
    state = optimiser_state(folder)
    if state and not config.model_only:
        raise ValueError(
            f"{folder} holds optimiser state, which is not published: {_few(state)}. Delete it (a finished run does not need "
            "it), or publish the model's files alone with --model-only."
        )
    found = secrets(folder)
    if found:
        raise ValueError(
            f"{folder} holds what looks like a secret, and nothing was published: {_few(found)}. Remove it."
        )
    if not config.model_only:
        _refuse_paths(folder, folder)
    if config.image is not None and not config.image.is_file():
        raise FileNotFoundError(f"A picture was expected at {config.image}: there is no such file.")


def _staged(folder: Path, target: Path, repo: str, facts: Facts, config: PublishConfig) -> list[str]:
    left_out = stage(
        folder,
        target,
        repo,
        facts,
        licence=config.licence,
        image=config.image,
        word_map=config.word_map,
    )
    _refuse_paths(folder, target)
    return left_out


def _refuse_paths(folder: Path, place: Path) -> None:
    paths = local_paths(place)
    if paths:
        raise ValueError(
            f"{folder} holds paths of this machine, and nothing was published: {_few(paths)}. Remove them, or publish the "
            "model's files alone with --model-only; adapters to a local base model are published whole: vwlmm merge."
        )


def _few(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise ValueError("Publishing needs a token of the Hub with write access: `hf auth login`, or set HF_TOKEN.")
    return token


def _upload(staged: Path, repo: str, config: PublishConfig, token: str) -> str:
    """Creates repository and branch where they are not there, and uploads in one commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # A connection that fails is an error of the HTTP library, which is another one in each version of huggingface_hub.
    no_connection: Any = HfHubHTTPError.__bases__[0]
    api = HfApi(token=token)
    try:
        place = api.create_repo(repo, private=config.private or None, exist_ok=True)
        if config.revision:
            api.create_branch(place.repo_id, branch=config.revision, exist_ok=True)
        # What has arrived is known by its SHA-256 and not sent again; the commit comes last, so a reader sees all or nothing.
        api.upload_folder(
            repo_id=place.repo_id, folder_path=staged, revision=config.revision, commit_message=config.message
        )
    except (OSError, RuntimeError, no_connection) as problem:
        if getattr(getattr(problem, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(
                f"{repo} was not published: the Hub does not let this token write there ({_reason(problem)}). Take one with "
                "write access: `hf auth login`, or HF_TOKEN."
            ) from None
        raise OSError(
            f"{repo} was not published: {_reason(problem)}. Run the same command again: what has arrived is not sent twice."
        ) from None
    return str(place)


def _reason(problem: BaseException) -> str:
    """The first telling line of an error and of the one behind it, with nothing of a token."""
    lines: list[str] = []
    current: BaseException | None = problem
    while current is not None and len(lines) < 2:
        told = next((line.strip() for line in str(current).splitlines() if line.strip()), type(current).__name__)
        lines.append(re.sub(r"hf_\w+", "hf_…", told).rstrip("."))
        current = current.__cause__
    return "; ".join(dict.fromkeys(lines))
