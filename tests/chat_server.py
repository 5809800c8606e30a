"""A stand-in for a remote model: a server of OpenAI's completions and chat protocol with deterministic answers.

It lists the model "first". An answer depends only on the request. It fits the prompts of finetune/instruct_generate.py
and of the judge of finetune/instruct_select.py, so that runs have accepted and rejected candidates.
"""

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conftest import free_port

VERBS = ["Describe", "Explain", "Compare", "List", "Summarise", "Classify", "Rewrite", "Name", "Discuss", "Count"]
NOUNS = re.findall(
    r"\w+",
    "rivers bridges poems recipes engines glaciers planets festivals treaties vaccines orchards harbours mosaics"
    " castles algorithms volcanoes languages museums novels deserts satellites violins markets islands",
)
ZH_VERBS = ["描述", "解释", "比较", "列出", "概括", "改写", "说明", "讨论"]
ZH_NOUNS = [
    "江河",
    "桥梁",
    "诗歌",
    "菜谱",
    "发动机",
    "冰川",
    "行星",
    "节日",
    "条约",
    "疫苗",
    "果园",
    "港口",
    "城堡",
    "算法",
    "火山",
]
Respond = Callable[[dict[str, Any], int], tuple[int, bytes, dict[str, str]]]


def is_chinese(text: str) -> bool:
    return bool(re.search("[一-龥]", text))


def sentence(draw: random.Random, chinese: bool) -> str:
    if chinese:
        return f"请{draw.choice(ZH_VERBS)}{''.join(draw.sample(ZH_NOUNS, 4))}的第{draw.randint(2, 999)}个特点"
    return f"{draw.choice(VERBS)} {' and '.join(draw.sample(NOUNS, 4))} in {draw.randint(2, 999)} words"


def answer_text(prompt: str, seed: object) -> str:
    """Return the deterministic answer to a prompt of the methods, English or Chinese."""
    draw = random.Random(hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest())
    chinese = is_chinese(prompt)
    if found := re.search(r"\n(\d+)\.$", prompt):  # continue a list of tasks
        first = int(found[1])
        items = [sentence(draw, chinese) + ("。" if chinese else ".") for _ in range(8)]
        return "\n".join([f" {items[0]}", *(f"{at}. {item}" for at, item in enumerate(items[1:], first + 1))])
    if prompt.endswith(("\nReply:", "\n回答：")) and ("Task:" in prompt or "任务：" in prompt):
        yes = draw.random() < 0.3
        return ("是" if yes else "否") if chinese else ("Yes" if yes else "No")
    if "\nSecond: " in prompt or "\n第二条：" in prompt:
        same = draw.random() < 0.2
        return ("相同" if same else "不同") if chinese else ("Same" if same else "Different")
    if prompt.endswith(("Example 1", "示例1")):
        text = sentence(draw, chinese)
        return f"输入：{text}\n输出：{text}很好" if chinese else f"\nInput: {text}\nOutput: {text}, certainly."
    if "Label: negative" in prompt or "标签：负面" in prompt:
        names = ("标签", "输入") if chinese else ("Label", "Input")
        return "\n".join(f"{names[0]}: {label}\n{names[1]}: {sentence(draw, chinese)}" for label in "AB")
    if found := re.search(r"<text>\n(.*)\n</text>", prompt, re.DOTALL):
        digest = hashlib.sha256(found[1].encode()).hexdigest()[:6]
        return (
            f"译文{digest}：{draw.choice(ZH_NOUNS)}" if chinese else f"Translation {digest} about {draw.choice(NOUNS)}"
        )
    if found := re.search(r'names "([^"]+)", but|要出现“([^”]+)”', prompt):
        head = found[1] or found[2]
        return f"{head}与什么有关系？" if chinese else f"What is related to {head}?"
    if found := re.search(r"names (.+), spelled|写出(.+)。\n", prompt):
        answers = re.findall(r'["“]([^"”]+)["”]', found[0])
        return ("、".join(answers) + "。") if chinese else f"The graph names {' and '.join(answers)}."
    if '"score"' in prompt:
        return json.dumps({"score": draw.randint(1, 10), "reason": "as drawn"})
    return sentence(draw, chinese) + ("。" if chinese else ".")


def completion(body: dict[str, Any], text: str | None = None, finish_reason: str = "stop") -> bytes:
    """Return the JSON response to a request of either route."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"].rstrip("\n")
    text = answer_text(prompt, body.get("seed")) if text is None else text
    key: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
    return json.dumps({"choices": [{**key, "finish_reason": finish_reason}], "usage": usage}).encode()


@dataclass
class ChatServer:
    """A running server and its record.

    respond: replaces the answer to a request; gets the body and the number of the request, from 0.
    """

    url: str
    respond: Respond | None = None
    delay: float = 0.0  # seconds before each answer
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: int = 0
    most_open: int = 0  # the highest number of concurrent requests
    lock: threading.Lock = field(default_factory=threading.Lock)


def handler_class(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet; else each answer waits for a delayed acknowledgement

        def do_GET(self) -> None:
            is_list = self.path == "/v1/models"
            self.send_answer(200 if is_list else 404, b'{"data": [{"id": "first"}]}' if is_list else b"{}", {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                server.open += 1
                server.most_open = max(server.most_open, server.open)
            time.sleep(server.delay)
            status, content, headers = 200, b"", dict[str, str]()
            if server.respond:
                status, content, headers = server.respond(body, number)
            with server.lock:
                server.open -= 1
            self.send_answer(status, content or completion(body), headers)

        def send_answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            if "Transfer" in headers:  # a body without an end
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(content)
                except OSError:
                    self.close_connection = True
                return
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    return Handler


@contextmanager
def chat_server(respond: Respond | None = None) -> Iterator[ChatServer]:
    """Run a server in threads of this process."""
    port = free_port()
    server = ChatServer(f"http://127.0.0.1:{port}", respond)
    http = ThreadingHTTPServer(("127.0.0.1", port), handler_class(server))
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a killed client breaks its connections
    thread = threading.Thread(target=lambda: http.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
