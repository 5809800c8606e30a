"""routes_middleware.py: the routes are added at the application's startup, if the model generates text."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from chat_prompts.prompt_encoding import PromptEncoder
from fastapi import FastAPI
from routes.routes_middleware import RoutesMiddleware
from transformers import AutoTokenizer


@pytest.mark.parametrize(("completion", "added"), [(object(), {"/generate", "/extract"}), (None, set())])
def test_startup_adds_the_routes_of_a_generating_model(
    tiny_checkpoint: Any, completion: object, added: set[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    app, scope_types = FastAPI(), list[str]()
    registry = SimpleNamespace(base_model_paths=[], lora_requests={}, is_base_model=lambda name: False)
    config = SimpleNamespace(max_model_len=512, try_get_generation_config=dict)
    app.state.engine_client = SimpleNamespace(get_tokenizer=lambda: tokenizer, model_config=config)
    app.state.args = SimpleNamespace(
        chat_template=None, model=str(tiny_checkpoint), trust_remote_code=False, max_num_queued_reqs=8
    )
    app.state.openai_serving_completion, app.state.openai_serving_models = completion, registry

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope_types.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        pytest.fail("the middleware received or sent a message")

    before = {getattr(route, "path", "") for route in app.routes}
    asyncio.run(RoutesMiddleware(application)({"type": "lifespan", "app": app}, nothing, nothing))
    assert set(app.openapi()["paths"]) == added
    assert scope_types == ["lifespan"]
    if completion:
        assert app.state.knowlm_models.base.context == 512
        assert isinstance(app.state.knowlm_models.base.encoder, PromptEncoder)
    assert before <= {getattr(route, "path", "") for route in app.routes}
