"""sentence-transformers: `CrossEncoder` with lists of messages, and with (prompt, response) pairs."""

from typing import Any

from exchange import column, run
from sentence_transformers import CrossEncoder  # pyright: ignore[reportMissingImports]


def pairs(probes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the pairs (prompt, response)."""
    return list(zip(column(probes, "prompt"), column(probes, "response"), strict=True))


if __name__ == "__main__":
    run(
        "sentence-transformers",
        lambda request: CrossEncoder(request["folder"], device="cpu"),
        {
            "messages": lambda model, probes: model.predict(column(probes, "messages")),
            "pairs": lambda model, probes: model.predict(pairs(probes)),
        },
    )
