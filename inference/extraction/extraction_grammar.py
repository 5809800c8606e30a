"""Build the grammar of an answer, so that constrained decoding gives valid JSON with the schema's types only.

The grammar is EBNF for xgrammar and admits answers as json.dumps(answer, ensure_ascii=False) writes them, spaces
included; where empty types are omitted, a type may be repeated. xgrammar's grammar of a JSON schema also admits other
white space by default, which the model was not tuned on, and a model can write white space until it reaches the token
limit. A grammar is the text of `answer_rules`, which depends on the schema, followed by that of `name_rules`, which can
limit the names of the answer to names in a text, so that the model can neither misspell nor invent them.

xgrammar caches a compiled grammar by its text, so a schema must always give the same text. The form of a rule affects
speed: with a group among the alternatives of `char`, the mask of one token takes 5 ms instead of 10 us (LLaMA-2's
32,000 pieces, xgrammar 0.2.8).
"""

import json

from extraction.extraction_form import AnswerForm
from extraction.extraction_results import NO_VALUE
from extraction.extraction_schema import SchemaType
from extraction.text_names import parts_automaton, text_symbols

# The nonempty strings that json.dumps writes; \u000 and \u001 are two alternatives, since a group would be slow.
ANY_NAME = r"""string ::= "\"" char+ "\""
char ::= [^"\\\x00-\x1f] | "\\" ["\\bfnrt] | "\\u000" [0-7be-f] | "\\u001" [0-9a-f]
"""

# Names are limited to a text only up to this length; the grammar of the longest text compiles in 0.3 s.
MAX_SYMBOLS, MAX_CHARACTERS = 2048, 16_384
Rules = dict[str, str]  # body -> name; equal bodies share a rule, so the compile time is linear in the schema's size


def add_rule(rules: Rules, stem: str, body: str) -> str:
    """Return the name of the rule with this body; add the rule, named stem + number, if it is new."""
    return rules.setdefault(body, f"{stem}{len(rules)}")


def answer_rules(form: AnswerForm, types: tuple[SchemaType, ...], prefix: str = "") -> str:
    """Return the rules of a grammar of answers, except the rules of names, which do not depend on the types.

    prefix: white space that the chat template writes before an answer in tuning; generated answers start with it.
    """
    rules: Rules = {}
    opening = literal(prefix + "{")
    lists = {}
    for key, shared in form.types_by_key(types).items():
        lists[key] = list_rule(item_rule(form, shared[0].roles, rules), form.all_types, rules)
    if form.all_types:
        pairs = ' ", " '.join(f"{literal(json_string(key) + ': ')} {items}" for key, items in lists.items())
        root = f'{opening} {pairs} "}}"'
    else:
        keys_by_list: dict[str, list[str]] = {}
        for key, items in lists.items():
            keys_by_list.setdefault(items, []).append(literal(json_string(key)))
        alternatives = (f'({" | ".join(keys)}) ": " {items}' for items, keys in keys_by_list.items())
        pair = add_rule(rules, "pair", " | ".join(alternatives))
        root = f'{opening} ({pair} (", " {pair})*)? "}}"'
    lines = (f"{name} ::= {body}\n" for body, name in rules.items())
    return f"root ::= {root}\n{''.join(lines)}"


def name_rules(form: AnswerForm, text: str) -> str:
    """Return the rules `string` and `part0`, `part1`, … for names in a text.

    Names are not limited if the text has no symbols, or has more than MAX_SYMBOLS symbols or MAX_CHARACTERS characters.
    A name begins and ends with a symbol that is not white space. White space in a name may also be written as one
    space. Forms with roles also admit "NAN", which stands for a missing trigger or argument.
    """
    symbols = text_symbols(text) if len(text) <= MAX_CHARACTERS else []
    if not 0 < len(symbols) <= MAX_SYMBOLS:
        return ANY_NAME
    edges = parts_automaton(symbols)
    after_space = {target for choices in edges for symbol, target in choices.items() if symbol.isspace()}
    absent = f" | {literal(json_string(NO_VALUE[-1]))}" if any(slot.by_role for slot in form.item) else ""
    lines = [f'string ::= "\\"" part0 "\\""{absent}\n']
    for state, choices in enumerate(edges):
        parts = ['""'] if state and state not in after_space else []
        for symbol, target in choices.items():
            if state or not symbol.isspace():
                spellings = dict.fromkeys((symbol, " ") if symbol.isspace() else (symbol,))
                parts += [f"{literal(json_string(spelling)[1:-1])} part{target}" for spelling in spellings]
        lines.append(f"part{state} ::= {' | '.join(parts)}\n")
    return "".join(lines)


def item_rule(form: AnswerForm, roles: tuple[str, ...], rules: Rules) -> str:
    """Return the name of the rule for an item of a type with these roles."""
    parts = []
    for slot in form.item:
        if slot.value_kind == "text":
            value = "string"
        elif slot.value_kind == "list":
            value = list_rule("string", form.all_types, rules)
        else:
            value = add_rule(rules, "names", 'string | "[" string (", " string)+ "]"')
        if slot.by_role:
            value = (ordered_roles if form.all_types else unordered_roles)(roles, value, rules)
        parts.append(f"{literal(json_string(slot.key) + ': ')} {value}" if slot.key else value)
    if not form.item[0].key:
        return parts[0]
    pairs = ' ", " '.join(parts)
    return add_rule(rules, "item", f'"{{" {pairs} "}}"')


def list_rule(element: str, may_be_empty: bool, rules: Rules) -> str:
    """Return the name of the rule for a list; element: name of the rule of its elements."""
    nonempty = f'"[" {element} (", " {element})* "]"'
    return add_rule(rules, "list", f'"[]" | {nonempty}' if may_be_empty else nonempty)


def ordered_roles(roles: tuple[str, ...], value: str, rules: Rules) -> str:
    """Return the name of the rule for an object with any subset of the roles, in their order.

    value: name of the rule of a role's value. The rules are built from the last role to the first.
    """
    first = later = add_rule(rules, "end", '"}"')
    for role in reversed(roles):
        pair = add_rule(rules, "role", f"{literal(json_string(role) + ': ')} {value}")
        first, later = (
            add_rule(rules, "first", f"{pair} {later} | {first}"),
            add_rule(rules, "later", f'", " {pair} {later} | {later}'),
        )
    return add_rule(rules, "roles", f'"{{" {first}')


def unordered_roles(roles: tuple[str, ...], value: str, rules: Rules) -> str:
    """Return the name of the rule for an object of roles in any order, possibly repeated."""
    if not roles:
        return add_rule(rules, "roles", '"{}"')
    role = add_rule(rules, "role", f'({" | ".join(literal(json_string(role)) for role in roles)}) ": " {value}')
    return add_rule(rules, "roles", f'"{{" ({role} (", " {role})*)? "}}"')


def json_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def literal(text: str) -> str:
    """Return a text as an EBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'
