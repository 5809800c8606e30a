"""What vLLM loads from here as an endpoint plugin: the routes of this stage, served beside vLLM's own.

knowlm_inference-1.dist-info names this class and launch_vllm.py allows it in VLLM_PLUGINS, so it is served wherever
vLLM serves, in one API process or in several (vllm.plugins.endpoint_plugins.interface describes the protocol).
"""

from typing import Any

from fastapi import FastAPI

from routes.extract_api import extract_router
from routes.generate_api import generate_router
from routes.served_models import served_models


class KnowlmEndpoints:
    """The routes, and the models that they answer for."""

    name = "knowlm"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(generate_router())
        app.include_router(extract_router())

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Called once the engine stands; args: the server's command line."""
        state.knowlm_models = await served_models(engine_client, state, args)
