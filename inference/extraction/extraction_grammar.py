"""The grammar of an answer: decoding under it gives JSON that parses and has no other types than the schema's.

the route /extract is made of it. The grammar is EBNF as xgrammar reads it and admits, to the space, what
json.dumps(answer, ensure_ascii=False) writes. A JSON schema would not do: spaces would be the model's to choose, which
it was not tuned on, and a model that may write spaces can go on until its tokens are spent.

xgrammar caches a compiled grammar by its text, so a schema always gives the same text. Its speed depends on how a rule
is put: with a group among the alternatives of `char`, finding out which tokens may come takes 5 ms a token instead of
10 us (LLaMA-2's 32,000 pieces, xgrammar 0.2.8).
"""

import json

from extraction.extraction_form import Form
from extraction.extraction_schema import Kind

# What json.dumps makes of a text. \u000 and \u001 are alternatives of their own instead of a group, see above.
STRING = r"""string ::= "\"" char+ "\""
char ::= [^"\\\x00-\x1f] | "\\" ["\\bfnrt] | "\\u000" [0-7be-f] | "\\u001" [0-9a-f]
"""


class Rules:
    """The rules of a grammar: equal ones are one rule, so that compiling takes no longer than the schema is long."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}  # what a rule stands for -> its name

    def name(self, stem: str, meaning: str) -> str:
        """The name of the rule that stands for `meaning`, a new one where there is none."""
        return self.names.setdefault(meaning, f"{stem}{len(self.names)}")

    def text(self) -> str:
        return "".join(f"{name} ::= {meaning}\n" for meaning, name in self.names.items())


def grammar(form: Form, kinds: tuple[Kind, ...], lead: str = "") -> str:
    """The EBNF of the answers in this form about these kinds.

    lead: what the chat template writes between a prompt and its answer, with which the model's answers then begin.
    """
    rules = Rules()
    opening = literal(lead + "{")
    lists = {}
    for key, shared in form.by_key(kinds).items():
        lists[key] = list_of(item(form, shared[0].roles, rules), form.every, rules)
    if form.every:
        pairs = ' ", " '.join(f"{literal(quoted(key) + ': ')} {items}" for key, items in lists.items())
        root = f'{opening} {pairs} "}}"'
    else:
        alike: dict[str, list[str]] = {}
        for key, items in lists.items():
            alike.setdefault(items, []).append(literal(quoted(key)))
        pair = rules.name("pair", " | ".join(f'({" | ".join(keys)}) ": " {items}' for items, keys in alike.items()))
        root = f'{opening} ({pair} (", " {pair})*)? "}}"'
    return f"root ::= {root}\n{rules.text()}{STRING}"


def item(form: Form, roles: tuple[str, ...], rules: Rules) -> str:
    """The rule for an item about a kind with these roles."""
    parts = []
    for slot in form.item:
        if slot.holds == "text":
            value = "string"
        elif slot.holds == "list":
            value = list_of("string", form.every, rules)
        else:
            value = rules.name("names", 'string | "[" string (", " string)+ "]"')
        if slot.by_role:
            value = (in_order if form.every else in_any_order)(roles, value, rules)
        parts.append(f"{literal(quoted(slot.key) + ': ')} {value}" if slot.key else value)
    if not form.item[0].key:
        return parts[0]
    inside = ' ", " '.join(parts)
    return rules.name("item", f'"{{" {inside} "}}"')


def list_of(each: str, may_be_empty: bool, rules: Rules) -> str:
    """The rule for a list of what the rule `each` stands for."""
    some = f'"[" {each} (", " {each})* "]"'
    return rules.name("list", f'"[]" | {some}' if may_be_empty else some)


def in_order(roles: tuple[str, ...], value: str, rules: Rules) -> str:
    """The rule for an object of some of the roles, in their order; built from the last one back."""
    first = later = rules.name("end", '"}"')
    for role in reversed(roles):
        pair = rules.name("role", f"{literal(quoted(role) + ': ')} {value}")
        first, later = (
            rules.name("first", f"{pair} {later} | {first}"),
            rules.name("later", f'", " {pair} {later} | {later}'),
        )
    return rules.name("roles", f'"{{" {first}')


def in_any_order(roles: tuple[str, ...], value: str, rules: Rules) -> str:
    """The rule for an object of some of the roles, of which one may come again."""
    if not roles:
        return rules.name("roles", '"{}"')
    role = rules.name("role", f'({" | ".join(literal(quoted(role)) for role in roles)}) ": " {value}')
    return rules.name("roles", f'"{{" ({role} (", " {role})*)? "}}"')


def quoted(name: str) -> str:
    """A name as JSON spells it."""
    return json.dumps(name, ensure_ascii=False)


def literal(text: str) -> str:
    """Text as EBNF spells it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'
