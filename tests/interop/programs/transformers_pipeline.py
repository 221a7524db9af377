"""transformers: the text-classification pipeline with its default options, and PEFT as in the card of an adapter."""

from functools import cached_property
from typing import Any

import torch
from exchange import column, run
from transformers import AutoTokenizer, pipeline


class Folder:
    """A folder that is loaded as a pipeline, or as an adapter with the code of its card."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.folder: str = request["folder"]
        self.adapter_code: str = request["adapter_code"]

    @cached_property
    def classify(self) -> Any:
        return pipeline("text-classification", model=self.folder, device="cpu")

    @torch.no_grad()
    def with_peft(self, texts: list[str]) -> list[float]:
        import peft
        import transformers

        names: dict[str, Any] = {**vars(transformers), **vars(peft), "Any": Any}
        exec(self.adapter_code, names)
        model, tokenizer = names["load_adapter"](self.folder).eval(), AutoTokenizer.from_pretrained(self.folder)
        return [model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item() for text in texts]


if __name__ == "__main__":
    run(
        "transformers",
        Folder,
        {
            "alone": lambda folder, probes: [folder.classify(text)[0]["score"] for text in column(probes, "text")],
            "batch": lambda folder, probes: [
                found["score"] for found in folder.classify(column(probes, "text"), batch_size=8, padding=True)
            ],
            "peft": lambda folder, probes: folder.with_peft(column(probes, "text")),
        },
    )
