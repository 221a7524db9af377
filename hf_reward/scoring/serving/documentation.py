"""The documentation page of the server at `/docs`, and the parts of `/openapi.json` that concern all endpoints.

FastAPI's own page loads Swagger UI from another host. This one takes it from the package fastapi-offline, and a content
security policy makes the browser refuse everything from elsewhere. All addresses are relative, so the page also works
behind a reverse proxy that adds a prefix.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from hf_reward.scoring.serving.protocols import answers

router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": words}
    for status, words in (("4XX", "The request is rejected."), ("5XX", "The server or the model failed."))
}
"""The errors of every endpoint, for `/openapi.json`."""

_ASSETS = "/docs/assets"
_POLICY = "; ".join(
    (
        *(
            "default-src 'none'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ),
        *(
            "script-src 'self' 'unsafe-inline'",
            "style-src 'self' 'unsafe-inline'",
        ),  # one script and the styles of the page
    )
)
_DESCRIPTION = """
Rewards of one or several reward models. All endpoints apply the chat template to prompts and responses and return the
raw reward. An unknown field is an error.

If the server has several models, name one in the field `model`. For protocols without this field, add `?model=NAME` to
the URL. `?run=NAME` monitors the responses of a training run.
"""


def documented_app(*, lifespan: Callable[[FastAPI], Any], takes_token: bool) -> FastAPI:
    """Return an application without endpoints, whose documentation loads nothing from other hosts.

    Args:
        lifespan: Context manager that runs while the application does.
        takes_token: Whether clients must send a bearer token. The middleware checks it; this adds it to the
            documentation.

    Returns:
        The application.
    """
    token = HTTPBearer(auto_error=False, description="The server's token")
    app = FastAPI(
        title="hf_reward",
        version=version("hf_reward"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(token)] if takes_token else [],
    )
    app.mount(_ASSETS, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    return app


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Show the documentation of all endpoints."""
    folder = _ASSETS.removeprefix("/")
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="hf_reward",
        swagger_js_url=f"{folder}/swagger-ui-bundle.js",
        swagger_css_url=f"{folder}/swagger-ui.css",
        swagger_favicon_url="data:,",
        # Swagger UI would send the address of the document to a validator on another host.
        swagger_ui_parameters={"validatorUrl": "none", "defaultModelsExpandDepth": 0, "docExpansion": "list"},
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page
