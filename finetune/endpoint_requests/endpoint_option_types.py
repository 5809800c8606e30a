"""Options of the commands that ask a server, in addition to --url and --model.

| option | default | |
| --- | --- | --- |
| `api` | `chat` | `completions`: /v1/completions, for models without a chat template |
| `extra_body` | | JSON object of further fields of each request; null removes a field, such as {"seed": null} |
| `concurrency` | 16 | maximum number of concurrent requests, up to 1024; does not change the result |
| `attempts` | 6 | attempts per request if the server fails or answers without a completion |
| `timeout` | 600 | seconds for one attempt |
| `retry_failed` | false | ask failed requests of the journal again |
| `api_key` | | prefer the environment variable OPENAI_API_KEY, which `ps` does not show |
| `input_price`, `output_price` | 0 | price of a million tokens of prompts and of answers |
"""

from typing import Any, Literal

ENDPOINT_OPTION_TYPES: dict[str, Any] = {
    "api": Literal["chat", "completions"], "extra_body": str, "concurrency": int, "attempts": int, "timeout": float,
    "retry_failed": bool, "api_key": str, "input_price": float, "output_price": float,
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "api": "chat", "extra_body": "", "concurrency": 16, "attempts": 6, "timeout": 600.0, "retry_failed": False,
    "api_key": "", "input_price": 0.0, "output_price": 0.0,
}  # fmt: skip
