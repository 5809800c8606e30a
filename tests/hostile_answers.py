"""Predictions that a scorer must survive: too deep, too large, of unexpected types, or with invalid text."""

HOSTILE = {
    "brackets": "[" * 1_000_000,
    "braces": '{"a":' * 200_000,
    "closed brackets": "[" * 500_000 + "]" * 500_000,
    "deep in an object": '{"a": [' + "[" * 900 + "]" * 900 + "]}",
    "deep argument": '{"a": [{"trigger": "x", "arguments": {"r": ' + '{"b": ' * 300 + "1" + "}" * 300 + "}}]}",
    "NaN": '{"a": [NaN, Infinity, -Infinity, {"trigger": NaN, "arguments": {"r": [NaN]}}]}',
    "huge number": '{"a": [' + "9" * 5000 + "]}",
    "large exponent": '{"a": [1e999999, {"r": 1e999999}]}',
    "equal keys": "{" + ",".join(['"a": ["x"]'] * 30_000) + "}",
    "equal heads": "{" + ",".join(['"a": {"h": {"r": "x"}}'] * 20_000) + "}",
    "unhashable": '{"a": [[1], {"b": [2]}, {"trigger": [1], "arguments": [2]}, {"subject": [1]}, null, true]}',
    "many names": '{"a": [' + ",".join(f'"n{number}"' for number in range(30_000)) + "]}",
    "surrogate": '{"a\\ud800": ["\\udfff", {"\\ud800": "\\ud800"}]}',
    "text": "\x00\ud800 {",
}  # fmt: skip
