"""Images of tokenised rows as columns of a prepared dataset. Imported for text models too, so it loads no images."""

from collections.abc import Sequence
from typing import Any

from datasets import Features, List, Value

from hf_reward.data.preference_row import PreferenceFormatError, PreferenceRow
from hf_reward.preprocessing.tokenization import TokenizedRow

IMAGE_FEATURES = Features(
    {
        "images": List(
            {
                "sha256": Value("string"),
                "path": Value("string"),
                "content": Value("binary"),
                "placeholder": Value("string"),
                "text": Value("string"),
                "tokens": Value("int32"),
                "grid_rows": Value("int32"),
                "grid_columns": Value("int32"),
                "several": Value("bool"),
            }
        )
    }
)
"""Further columns for vision-language models: the fields of `ExpandedImage` for each image of the prompt."""


def expanded_row(row: PreferenceRow, images: Any, index: int) -> PreferenceRow:
    """Add to each image of a row the text that stands for it; errors get the number of the row."""
    try:
        return images.expanded(row)
    except PreferenceFormatError as error:
        raise PreferenceFormatError(error.message, index, error.field) from None


def image_token_problems(
    tokenized: Sequence[TokenizedRow], images: Any, indices: Sequence[int] | None
) -> dict[int, str]:
    """Return the rows whose texts contain the image token, by place; with `indices`, raise an error for the first."""
    found: dict[int, str] = {}
    for place, row in enumerate(tokenized):
        if problem := images.token_problem(row.input_ids, row.images) if row.input_ids else "":
            if indices is not None:
                message = f"{problem[0].upper()}{problem[1:]}, or drop the row."
                raise PreferenceFormatError(message, indices[place], "images")
            found[place] = "unreadable (images)"
    return found


def with_image_columns(
    columns: dict[str, list[Any]], tokenized: Sequence[TokenizedRow], images: Any
) -> dict[str, list[Any]]:
    """Add the images of each row to its columns and to the hash of its content."""
    from hf_reward.preprocessing.image_inputs import image_columns  # noqa: PLC0415 - not for text models

    hashes = [
        hash((number, images.number, *(int(image.sha256[:15], 16) for image in result.images)))
        for number, result in zip(columns["content_hash"], tokenized, strict=True)
    ]
    return {**columns, "content_hash": hashes, "images": [image_columns(result.images) for result in tokenized]}
