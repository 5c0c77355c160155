"""Visual Dialog as retrieval: which picture is a dialogue about? (FROMAGe, arXiv 2301.13823, which VLAP follows.)

`vwlmm score visdial_retrieval --annotations visdial_1.0_val.json --answers answers.jsonl`
"""

from pathlib import Path
from typing import ClassVar

from .benchmark import Files, Question
from .captioning import only_file
from .official_files import find_files
from .retrieval import Retrieval
from .visdial import Dialog, read_dialogs


class VisDialRetrieval(Retrieval):
    """All rounds are one text, and each picture has one: 2,064 of both.

    `dialogue_to_image` is what the paper names. FROMAGe's script takes its top K along the other side of the matrix, so
    what it prints is `image_to_dialogue`: both are given under their names.
    """

    name = "visdial_retrieval"
    title = "Visual Dialog, picture retrieval"
    directions: ClassVar[tuple[str, str]] = ("image_to_dialogue", "dialogue_to_image")
    main_direction = 1

    def files(self, data: Path) -> Files:
        """The validation dialogues and the pictures."""
        annotations, images = find_files(data, self.name, "visdial_1.0_val.json", "VisualDialog_val2018")
        return Files((annotations,), (), images)

    def read(self, files: Files) -> list[Question]:
        """One question a picture, in the file's order."""
        dialogs = read_dialogs(only_file(files, self.name, "visdial_1.0_val.json"))
        return [
            Question(
                id=str(dialog.image_id),
                messages=(),
                images=(dialog.image,),
                record={"captions": [dialogue_text(dialog)], "names": {str(dialog.image_id), dialog.image}},
                where=dialog.record.where,
            )
            for dialog in dialogs
        ]


def dialogue_text(dialog: Dialog) -> str:
    """The whole dialogue as FROMAGe writes it: `Q: …? A: ….`, rounds after one another."""
    rounds = (f"Q: {dialog.question(i)}? A: {dialog.answer(i)}." for i in range(len(dialog.rounds)))
    return " ".join(rounds)
