"""Captions split by the Stanford tokenizer itself, in Java: what the figures of papers are counted on.

Needs `java` and the optional extra: `pip install 'vwlmm[caption]'`.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import util
from pathlib import Path

from .ptb_tokenizer import PUNCTUATION


def java_tokens(captions: Sequence[str]) -> list[str]:
    """The tokens of every caption, joined by single blanks, punctuation dropped.

    Raises:
        ImportError: the package is not installed.
        OSError: there is no `java`, or it failed.
    """
    package = util.find_spec("pycocoevalcap")
    if package is None or package.submodule_search_locations is None:
        raise ImportError("the Java tokenizer comes with pycocoevalcap: pip install 'vwlmm[caption]'")
    if shutil.which("java") is None:
        raise OSError("the Java tokenizer needs `java` on the PATH: install a Java runtime, or take tokenizer=own")
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    # One caption a line: whatever Java takes for a line break would shift all that follow.
    lines = [re.sub(r"[\n\r\v\f\x85\u2028\u2029]", " ", caption) for caption in captions]
    # Through standard input: the package itself writes a file into its own folder, which may not be writable.
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(command, input="\n".join(lines).encode(), capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"the Java tokenizer failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    found = done.stdout.decode().split("\n")[: len(lines)]
    if len(found) < len(lines):
        raise OSError(f"the Java tokenizer returned {len(found)} lines for {len(lines)} captions")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in found]


def has_java_tokenizer() -> bool:
    """Whether `java_tokens` can be called here."""
    return shutil.which("java") is not None and util.find_spec("pycocoevalcap") is not None
