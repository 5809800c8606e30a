"""The default wording of extraction instructions and the shape of the answers, by task; style prose and schema_json.

In prose, {schema} stands for the types. In schema_json, the types are beside the instruction.
"""

from typing import Any

Shape = dict[str, list[Any] | dict[str, Any]]

PAIR = {"subject": "<name>", "object": "<name>"}
ROLES = {"<role>": "<name>|[<name>]"}
SHAPES: dict[str, Shape] = {
    "ner": {"<type>": ["<name>"]},
    "re": {"<relation>": [PAIR]},
    "spo": {"<predicate>": [PAIR]},
    "ee": {"<type>": [{"trigger": "<name>", "arguments": ROLES}]},
    "eet": {"<type>": ["<name>"]},
    "eea": {"<type>": [ROLES]},
    "kg": {"<entity type>": {"<head>": {"<attribute>": "<name>|[<name>]"}}},
}
PROSE = {
    "ner": {
        "en": "Which entities of the following types does the text name: {schema}? Reply with a JSON object: each type "
        "is a key, its value the list of its entities as the text spells them, [] for none.",
        "zh": "文本中有哪些以下类型的实体：{schema}？以JSON对象作答，类型为键，"
        "值为实体的列表，写法与原文一致，没有则为[]。",
    },
    "re": {
        "en": "Which relations of the following kinds does the text state: {schema}? Reply with a JSON object: each "
        'kind is a key, its value a list of {"subject": …, "object": …} as the text spells them, [] for none.',
        "zh": "文本中陈述了以下哪些关系：{schema}？以JSON对象作答，关系为键，"
        '值为{"subject": …, "object": …}的列表，写法与原文一致，没有则为[]。',
    },
    "spo": {
        "en": "Which relations of the following kinds, with the types of subject and object in brackets, does the text "
        'state: {schema}? Reply with a JSON object: each kind is a key, its value a list of {"subject": …, '
        '"object": …} as the text spells them, [] for none.',
        "zh": "文本中陈述了以下哪些关系（括号内为主体和客体的类型）：{schema}？以JSON对象作答，关系为键，"
        '值为{"subject": …, "object": …}的列表，写法与原文一致，没有则为[]。',
    },
    "ee": {
        "en": "Which events of the following types, with their roles in brackets, does the text report: {schema}? "
        'Reply with a JSON object: each type is a key, its value a list of {"trigger": …, "arguments": {role: …}} as '
        "the text spells them, [] for none.",
        "zh": "文本中报道了以下哪些类型的事件（括号内为论元角色）：{schema}？以JSON对象作答，类型为键，"
        '值为{"trigger": …, "arguments": {角色: …}}的列表，写法与原文一致，没有则为[]。',
    },
    "eet": {
        "en": "Which events of the following types does the text report: {schema}? Reply with a JSON object: each type "
        "is a key, its value the list of the events' triggers as the text spells them, [] for none.",
        "zh": "文本中报道了以下哪些类型的事件：{schema}？以JSON对象作答，类型为键，"
        "值为触发词的列表，写法与原文一致，没有则为[]。",
    },
}
SCHEMA_JSON = {
    "ner": {
        "en": "Extract the entities of the schema's types from the input. Reply with a JSON object: each type is a "
        "key, its value the list of its entities, [] for none.",
        "zh": "请从input中抽取schema所列类型的实体，以JSON对象作答：类型为键，值为实体的列表，没有则为[]。",
    },
    "re": {
        "en": "Extract the relations of the schema from the input. Reply with a JSON object: each relation is a key, "
        'its value a list of {"subject": …, "object": …}, [] for none.',
        "zh": "请从input中抽取schema所列的关系，以JSON对象作答：关系为键，"
        '值为{"subject": …, "object": …}的列表，没有则为[]。',
    },
    "spo": {
        "en": "Extract the relations of the schema, between a subject and an object of the given types, from the "
        'input. Reply with a JSON object: each predicate is a key, its value a list of {"subject": …, "object": …}, [] '
        "for none.",
        "zh": "请从input中抽取schema所列的关系，主体和客体须为给定类型，以JSON对象作答：谓词为键，"
        '值为{"subject": …, "object": …}的列表，没有则为[]。',
    },
    "ee": {
        "en": "Extract the events of the schema's types from the input. Reply with a JSON object: each type is a key, "
        'its value a list of {"trigger": …, "arguments": {role: …}}, [] for none; a role has a text, a list of several '
        "texts, or NAN for none.",
        "zh": "请从input中抽取schema所列类型的事件，以JSON对象作答：类型为键，值为"
        '{"trigger": …, "arguments": {角色: …}}的列表，没有则为[]；角色的值为文本，有多个则为列表，没有则为NAN。',
    },
    "eet": {
        "en": "Extract the triggers of the schema's event types from the input. Reply with a JSON object: each type is "
        "a key, its value the list of its triggers, [] for none.",
        "zh": "请从input中抽取schema所列类型的事件的触发词，以JSON对象作答：类型为键，值为触发词的列表，没有则为[]。",
    },
    "eea": {
        "en": "The input reports events of the schema's types. Extract their arguments. Reply with a JSON object: each "
        "type is a key, its value a list with an object of roles for each event; a role has a text, a list of several "
        "texts, or NAN for none, and an event without arguments is {}.",
        "zh": "input中有schema所列类型的事件，请抽取其论元，以JSON对象作答：类型为键，值为各事件的角色对象的列表；"
        "角色的值为文本，有多个则为列表，没有则为NAN，没有论元的事件为{}。",
    },
    "kg": {
        "en": "Extract the entities of the schema's types from the input with the attributes that it states. Reply "
        "with a JSON object: entity type, then entity, then attribute with a text or a list of several texts; leave "
        "out everything that the input does not state.",
        "zh": "请从input中抽取schema所列类型的实体及其属性，以JSON对象作答：依次为实体类型、实体、属性，"
        "属性的值为文本，有多个则为列表；原文没有的不写。",
    },
}
WORDINGS = {"prose": PROSE, "schema_json": SCHEMA_JSON}
