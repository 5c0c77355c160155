"""What must never be published: optimiser state, secrets, and paths of the machine a model was trained on."""

import re
from pathlib import Path

OPTIMISER = re.compile(
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin|pth)|rng_state.*\.pth|random_states_\d+\.pkl|.*optim_states\.pt|optimizer_\d+"
)
TEXT_SUFFIXES = {
    "",
    ".json",
    ".jsonl",
    ".jinja",
    ".yaml",
    ".yml",
    ".md",
    ".txt",
    ".py",
    ".env",
    ".cfg",
    ".ini",
    ".toml",
    ".log",
}
# Word lists: a piece such as "/home/" in them is a word and no path.
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a W&B key": re.compile(r"WANDB_API_KEY\W{1,4}[0-9a-f]{40}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
ROOTS = (
    "home|Users|root|mnt|media|tmp|var|opt|srv|data|datasets|scratch|work|workspace|private|gpfs|lustre|nfs|fsx|"
    "content|kaggle"
)
# What a run writes for its owner; it is published in another form, or not at all.
OF_THE_RUN = {"recipe.yaml", "trainer_state.json", "result.json", "quarantine.jsonl"}
# Not behind a letter, a dot or a slash: the path of a web address is none of this machine.
LOCAL_PATH = re.compile(rf"(?<![\w./~-])(?:~/[\w.-]+|/(?:{ROOTS})/[\w.@+-]+|[A-Za-z]:[\\/]+Users[\\/]+)[\w./\\@+-]*")


def optimiser_state(folder: Path) -> list[str]:
    """Files of a run that nobody who loads the model needs, anywhere in the folder."""
    return [str(path.relative_to(folder)) for path in _files(folder) if OPTIMISER.fullmatch(path.name)]


def secrets(folder: Path) -> list[str]:
    """`file: what it looks like` for every text file that holds a secret; the secret itself is not repeated."""
    found = []
    for path in _files(folder):
        if path.suffix in TEXT_SUFFIXES and path.name not in VOCABULARIES:
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(folder)}: {kind}" for kind, look in SECRETS.items() if look.search(text)]
    return found


def local_paths(folder: Path) -> list[str]:
    """`file: path` for the first path of this machine in each text file; evaluations and the run's own records aside."""
    places = [str(path) for path in (Path.home(), Path.cwd()) if len(path.parts) > 1]
    own = re.compile("|".join(rf"(?<![\w./-]){re.escape(place)}\b[\w./@+-]*" for place in places) or r"(?!)")
    found = []
    for path in _files(folder):
        inside = path.relative_to(folder)
        is_text = path.suffix in TEXT_SUFFIXES and path.name not in VOCABULARIES
        if is_text and inside.parts[0] != "eval" and str(inside) not in OF_THE_RUN:
            text = path.read_text(encoding="utf-8", errors="replace")
            match = own.search(text) or LOCAL_PATH.search(text)
            if match:
                found.append(f"{inside}: {match.group(0)}")
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
