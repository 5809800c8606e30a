"""Read descriptions and examples of labels, which are added to the instructions.

A file has {label: "description"} or {label: {"description": "…", "examples": ["…"]}}, where one of the two is required.
Models that are given descriptions generalise better to new types (GoLLIE, https://arxiv.org/abs/2310.03668).
"""

from typing import Any

from json_rows.row_files import read_json

from extraction_building.schema_items import Schema, is_name

FORM = '{label: "description"} or {label: {"description": "…", "examples": ["…"]}}'
EXAMPLES = {"en": ("Examples: ", ", ", "."), "zh": ("例如：", "、", "。")}


def read_descriptions(path: str) -> dict[str, Any]:
    """Return the descriptions of a file by label; raises FileNotFoundError, or ValueError if the form is not FORM."""
    content = read_json(path, f"--descriptions takes a file of {FORM}")
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} does not have the form {FORM}")
    for label, given in content.items():
        if not is_name(given) and not is_description(given):
            raise ValueError(f"{path} has no description or examples under {label!r:.60}; write {FORM}")
    return content


def is_description(value: Any) -> bool:
    """Return whether a value is an object with a description, examples, or both."""
    if not isinstance(value, dict) or not value or not set(value) <= {"description", "examples"}:
        return False
    examples = value.get("examples", ["x"])
    return is_name(value.get("description", "x")) and isinstance(examples, list) and all(map(is_name, examples))


def entry_descriptions(schema: Schema, descriptions: dict[str, Any], language: str) -> list[str]:
    """Return the description of each entry of a schema, "" for an entry without one.

    descriptions: the result of `read_descriptions`; for spo, by "subject type_predicate_object type" or by predicate.
    Raises ValueError if no entry has a description.
    """
    found = [
        descriptions.get(label, descriptions.get(item.name))
        for label, item in zip(schema.labels, schema.items, strict=True)
    ]
    if not any(found):
        raise ValueError(
            f"--descriptions has no type of the schema in {language} ({', '.join(schema.labels[:3])}, …); give "
            "descriptions of these types, or remove the option"
        )
    return [description_text(given, language) if given else "" for given in found]


def description_text(given: Any, language: str) -> str:
    """Return a description, with its examples, as one text."""
    if isinstance(given, str):
        return given
    beginning, comma, end = EXAMPLES[language]
    examples = given.get("examples", [])
    listed = beginning + comma.join(examples) + end if examples else ""
    return (" " if language == "en" else "").join(filter(None, (given.get("description", ""), listed)))
