"""Print, as JSON, the instruction row that asks a model for the entities, relations or events in a text.

    python examples/ie_prompt.py --task re --schema "born in, works for" --text "Ann Lee was born in Oslo."
    python examples/ie_prompt.py --task ner --schema "person, place" --text "…" \\
        --extraction_path quickstart/merged/extraction.json

The instruction is in the language of the text. With --extraction_path, it has the wording and style of that file, if
the file has an entry for the task and language. In the style schema_json, the instruction contains the text.
"""

from command_line.fire_commands import run

import json

from demo_pages import extraction_prompts
from text_language.language_detection import language_of


def main(task: str, text: str, schema: str = "", extraction_path: str = "") -> None:
    """Print {"instruction", "input"} on one line.

    Args:
        task: ner (entities), re (relations) or ee (events).
        text: the text to extract from.
        schema: types, as in "person, place"; for events with roles, "layoff: company, time; meeting: who". Optional if
            the wording of extraction.json has no {schema}.
        extraction_path: the extraction.json of a checkpoint.
    """
    extraction = extraction_prompts.read_extraction(extraction_path) if extraction_path else {}
    types = extraction_prompts.parse_schema(schema, task)
    instruction, input = extraction_prompts.extraction_question(task, types, text, language_of(text), extraction)
    print(json.dumps({"instruction": instruction, "input": input}, ensure_ascii=False))


if __name__ == "__main__":
    run(main)
