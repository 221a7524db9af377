"""Images of rows: every form, their place in the prompt, what is refused, and groups of rows with images."""

import base64
import io
import json
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image
from transformers import AutoConfig
from vision_models import encoded, picture, save_vision_model, vision_tokenizer

from hf_reward.data.encoded_images import undecoded
from hf_reward.data.image_messages import as_parts, images_in, images_of
from hf_reward.data.image_source import MAX_BYTES, ImageSource, decode_image, image_source
from hf_reward.data.images import with_references
from hf_reward.data.preference_row import IMAGE_SOURCES, PreferenceFormatError, PreferenceRow
from hf_reward.data.preferences import detect_layout, to_preference_row
from hf_reward.data.row_text import REFERENCE, readable, without_references
from hf_reward.data.score_request import read_request, request_from_messages, requests_of_row
from hf_reward.data.sources import Source, load_source
from hf_reward.preprocessing.image_processor import load_image_processing
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences

PNG = encoded(picture(0))
OTHER = encoded(picture(1))
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
PART = {"type": "image", "image": PNG}
PAIR = {"prompt": "What is shown?", "chosen": "A red square.", "rejected": "A dog."}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


CHAT = {"prompt": [said("user", "p")], "chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def turns(row: PreferenceRow) -> list[Any]:
    """The prompt with `A` and `B` for the two pictures."""
    names = {image_source(PNG).sha256: "A", image_source(OTHER).sha256: "B"}
    assert isinstance(row.prompt, list)
    return [REFERENCE.sub(lambda found: f"[{names[found.group(1)]}]", turn["content"]) for turn in row.prompt]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(PNG)
    return tmp_path / "a.png"


# --- forms ------------------------------------------------------------------------------------------------------------


def test_every_form_of_an_encoded_image_is_the_same_image(file: Path) -> None:
    forms = [PNG, bytearray(PNG), memoryview(PNG), URL, file, str(file), image_source(PNG)]
    forms += [{"bytes": PNG, "path": None}, {"bytes": None, "path": str(file)}, {"bytes": PNG, "path": "gone.png"}]
    found = [image_source(form) for form in forms]
    assert set(found) == {ImageSource(found[0].sha256)}
    assert all(each.decode().tobytes() == picture(0).tobytes() for each in found)
    assert [each.path for each in found if each.content is None] == [str(file)] * 3
    assert image_source("a.png", folder=file.parent) == found[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "F", "HSV", "YCbCr", "I;16", "1"])
def test_a_picture_of_every_mode_is_read(mode: str) -> None:
    given = Image.new("I;16", (8, 6)) if mode == "I;16" else picture(0).convert(mode)
    assert image_source(given).decode().size == given.size


def test_a_photo_is_turned_upright_in_every_form() -> None:
    photo = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    picture(0, (40, 28)).save(photo, "PNG", exif=exif)
    opened = Image.open(io.BytesIO(photo.getvalue()))
    decoded = [image_source(form).decode() for form in (photo.getvalue(), opened)]
    assert [each.size for each in decoded] == [(28, 40)] * 2
    assert decoded[0].tobytes() == decoded[1].tobytes()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": PNG},
        {"type": "image", "image": {"bytes": PNG, "path": None}},
        {"type": "image", "image": picture(0)},
        {"type": "image", "url": URL},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image_url", "image_url": URL},
        {"type": "image", "image": None, "text": None, "path": URL},
    ],
)
def test_every_form_of_a_part(part: dict[str, Any]) -> None:
    row = to_preference_row({**PAIR, "prompt": [said("user", [text("See "), part, text(": which?")])]})
    assert len(images_of(row)) == 1
    assert images_of(row)[0].decode().tobytes() == picture(0).tobytes()
    assert as_parts(row.prompt[0])["content"] == [text("See "), {"type": "image"}, text(": which?")]  # type: ignore[index]
    assert IMAGE_SOURCES not in as_parts(row.prompt[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["bytes", "image", "path", "URL", "struct"])
def test_a_column_of_every_form_survives_a_table(form: str, file: Path) -> None:
    value: Any = {
        "bytes": PNG,
        "image": picture(0),
        "path": str(file),
        "URL": URL,
        "struct": {"bytes": PNG, "path": ""},
    }
    rows = [{**PAIR, "image": value[form]}, {**PAIR, "image": None}]
    table = load_source(Source(data=rows, name="data"))
    first, second = (to_preference_row(row) for row in table)
    assert images_of(first)[0].decode().tobytes() == picture(0).tobytes()
    assert second.prompt == PAIR["prompt"]


def test_images_in_two_columns_are_refused() -> None:
    with pytest.raises(PreferenceFormatError, match="images in one column, but has `images` and `image`"):
        to_preference_row({**PAIR, "image": PNG, "images": [OTHER]})
    assert to_preference_row({**PAIR, "image": PNG, "images": None}) is not None


def test_bytes_of_other_columns_are_not_images() -> None:
    (row,) = load_source(Source(data=[{**PAIR, "prompt": PAIR["prompt"].encode(), "image": PNG}], name="data"))
    assert turns(to_preference_row(row)) == ["[A]What is shown?"]


def test_rows_of_arrays_have_the_same_images() -> None:
    frame = pd.DataFrame({"prompt": [np.array([said("user", np.array([{"type": "image"}, text("What?")]))])]})
    row = {"prompt": frame["prompt"][0], "images": np.array([{"bytes": PNG}]), "chosen": "a", "rejected": "b"}
    assert turns(to_preference_row(row)) == ["[A]What?"]


def test_images_of_a_dataset_are_read_without_decoding() -> None:
    kinds = Features({"image": ImageColumn(), "images": List(ImageColumn()), "prompt": Value("string")})
    broken = {"bytes": PNG[:60], "path": None}
    table = Dataset.from_list([{"image": broken, "images": [{"bytes": PNG}], "prompt": "p"}], features=kinds)
    (row,) = undecoded(table)
    assert row["image"] == broken
    assert row["images"][0]["bytes"] == PNG
    assert undecoded(undecoded(table)).features == undecoded(table).features
    texts = Dataset.from_list([PAIR])
    assert undecoded(texts) is texts
    assert undecoded(table.to_iterable_dataset()).features == undecoded(table).features


# --- places -----------------------------------------------------------------------------------------------------------


def test_images_of_the_column_come_first_or_replace_placeholders() -> None:
    cases: list[tuple[Any, list[Any], list[str]]] = [
        ("What?", [PNG], ["[A]What?"]),
        ("", [PNG], ["[A]"]),
        ("What?", [PNG, OTHER], ["[A][B]What?"]),
        ("<image>\nWhat?", [PNG], ["[A]\nWhat?"]),
        ("Is <image> or <image> larger?", [OTHER, PNG], ["Is [B] or [A] larger?"]),
        ([said("system", "Be brief."), said("user", "What?")], [PNG], ["Be brief.", "[A]What?"]),
        ([said("user", [text("Wh"), text("at?")])], [PNG], ["[A]What?"]),
        (
            [said("user", "<image>What?"), said("assistant", "A square."), said("user", "And <image>?")],
            [PNG, OTHER],
            ["[A]What?", "A square.", "And [B]?"],
        ),
        (
            [said("user", "What?"), said("assistant", "No <image>."), said("user", "B?")],
            [PNG],
            ["[A]What?", "No <image>.", "B?"],
        ),
    ]
    for prompt, column, expected in cases:
        row = to_preference_row({**PAIR, "prompt": prompt, "images": column})
        assert turns(row) == expected
        assert [image.sha256 for image in images_of(row)] == [image_source(each).sha256 for each in column]
        assert all((IMAGE_SOURCES in turn) == ("[" in said) for turn, said in zip(row.prompt, expected, strict=True))


@pytest.mark.parametrize("prompt", ["<image><image>What?", [said("user", "<image>"), said("user", "<image>")]])
def test_another_number_of_placeholders_is_refused(prompt: Any) -> None:
    with pytest.raises(
        PreferenceFormatError, match=r"must have `<image>` once for each of its 1 image, .* has it 2 times"
    ):
        to_preference_row({**PAIR, "prompt": prompt, "image": PNG})


def test_parts_without_an_image_take_those_of_the_column_as_in_trl() -> None:
    row = {
        "images": [PNG, OTHER],
        "prompt": [said("user", [{"type": "image"}, text("Is it larger than "), {"type": "image"}, text("?")])],
        "chosen": [said("assistant", [text("Yes.")])],
        "rejected": [said("assistant", [text("No.")])],
    }
    found = to_preference_row(row)
    assert turns(found) == ["[A]Is it larger than [B]?"]
    assert found.responses == [[said("assistant", "Yes.")], [said("assistant", "No.")]]
    for column, message in (([PNG], "has no image, and the column"), ([PNG] * 3, "3 images, but .* 2 image parts")):
        with pytest.raises(PreferenceFormatError, match=message):
            to_preference_row({**row, "images": column})


def test_conversations_with_an_implicit_prompt_share_the_image() -> None:
    for content, column in (
        ("What?", PNG),
        ([{"type": "image"}, text("What?")], PNG),
        ([{"type": "image", "image": PNG}, text("What?")], None),
    ):
        row = {side: [said("user", content), said("assistant", side)] for side in ("chosen", "rejected")}
        found = to_preference_row({**row, "image": column})
        assert turns(found) == ["[A]What?"]
        assert found.responses == [[said("assistant", "chosen")], [said("assistant", "rejected")]]


def test_every_layout_may_have_images() -> None:
    question = said("user", [{"type": "image", "image": PNG}, text("What?")])
    answers = [[question, said("assistant", answer)] for answer in ("a", "b", "c")]
    rows: list[dict[str, Any]] = [
        {"prompt": [question], "responses": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": [question], "responses": answers, "ranks": [0, 1, 2]},  # complete conversations
        {"prompt": "What?", "image": PNG, "responses": ["a", "b", "c"], "scores": [3, 2, 1]},
        {"prompt": "What?", "image": PNG, "response_a": "a", "response_b": "b", "winner": "a"},
        {"prompt": [question], "chosen": answers[0], "rejected": answers[1]},
    ]
    found = [to_preference_row(row) for row in rows]
    assert [turns(row) for row in found] == [["[A]What?"]] * len(rows)
    assert len({row.group for row in found}) == 1
    requests = [
        *requests_of_row({"prompt": "What?", "image": PNG, "responses": ["a", "b"]}),
        *requests_of_row({"messages": answers[0]}),
        read_request([question], "a"),
        request_from_messages(answers[1]),
    ]
    assert len(requests) == 5
    assert all(images_in(each.prompt) == images_of(found[0]) for each in requests)  # type: ignore[arg-type]


def test_a_null_column_is_a_row_without_images() -> None:
    for column in (None, []):
        assert to_preference_row({**PAIR, "images": column}).prompt == PAIR["prompt"]
    with pytest.raises(PreferenceFormatError, match="must be a path, bytes or an image, but is NoneType"):
        to_preference_row({**PAIR, "images": [PNG, None]})


def test_columns_of_another_kind_are_kept() -> None:
    row = to_preference_row({**PAIR, "image": "see page 3", "images": 7})
    assert row.prompt == PAIR["prompt"]
    assert row.meta == {"image": "see page 3", "images": 7}


# --- published layouts ------------------------------------------------------------------------------------------------


def test_rlaif_v_needs_no_columns() -> None:
    row = {"ds_name": "RLAIF-V", "image": {"bytes": PNG, "path": "1.jpg"}, "question": "What?"}
    row |= {"chosen": "A square.", "rejected": "A dog.", "origin_dataset": "coco", "idx": "0", "image_path": "1.jpg"}
    assert detect_layout(row) == "pairs"
    found = to_preference_row(row)
    assert turns(found) == ["[A]What?"]
    assert "question" not in found.meta
    without = to_preference_row({**row, "image": None})
    assert without.prompt == "What?"
    text_row = {"question": "What?", "chosen": "a", "rejected": "b"}  # as before: `columns` names the prompt
    assert to_preference_row(text_row).prompt == ""


def test_mm_rlhf_needs_no_columns_and_its_videos_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "1", "prompt": "<image>\nWhat?", "chosen": "A square.", "rejected": "A dog.", "chosen_reason": "right"}
    monkeypatch.chdir(file.parent)
    (file.parent / "rows.jsonl").write_text(
        "".join(json.dumps({**row, **each}) + "\n" for each in ({"image": "a.png"}, {"video": "video/1"}))
    )
    first, second = load_source(Source(data=str(file.parent / "rows.jsonl"), name="rows"))
    assert turns(to_preference_row(first)) == ["[A]\nWhat?"]
    with pytest.raises(PreferenceFormatError, match="videos are not supported, but has one: 'video/1'"):
        to_preference_row(second)


# --- refused ----------------------------------------------------------------------------------------------------------


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header states a large size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_decompression_bomb_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(PreferenceFormatError, match=r"at most 64,000,000 pixels, but has 10,000 x 6,401"):
        decode_image(_bomb(10_000, 6_401))
    with pytest.raises(PreferenceFormatError, match=r"cannot be decoded .*exceeds limit"):
        decode_image(_bomb(60_000, 60_000))
    with pytest.raises(PreferenceFormatError, match="at most 64,000,000 pixels"):
        image_source(Image.open(io.BytesIO(_bomb(10_000, 6_401))))
    with pytest.raises(AssertionError, match="decoded"):
        Image.open(io.BytesIO(_bomb(8, 8))).load()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (PNG[:20], "cannot be decoded|must be one of"),
        (b"", "must be one of PNG, JPEG"),
        (b"<svg/>", "must be one of PNG, JPEG"),
    ],
)
def test_broken_images_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PreferenceFormatError, match=message):
        decode_image(data)
    with pytest.raises(PreferenceFormatError, match=message):
        image_source(data).decode()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, for damaged metadata
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_give_an_image_or_a_format_error(kind: str) -> None:
    file = io.BytesIO()
    picture(0).save(file, kind, exif=Image.Exif())
    data = file.getvalue()
    for place in range(min(len(data), 400)):
        for value in (0, 255):
            with suppress(PreferenceFormatError):
                decode_image(data[:place] + bytes([value]) + data[place + 1 :])


def test_a_picture_with_a_broken_file_is_refused() -> None:
    with pytest.raises(PreferenceFormatError, match="cannot be decoded"):
        image_source(Image.open(io.BytesIO(PNG[: len(PNG) // 2])))


def test_too_many_bytes_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_reward.data.image_source.MAX_BYTES", len(PNG) - 1)
    for value in (PNG, URL, file):
        with pytest.raises(PreferenceFormatError, match=f"at most {len(PNG) - 1:,} bytes"):
            image_source(value)
    assert MAX_BYTES == 32 * 2**20


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for value, message in (
        ("gone.png", "cannot be read .No such file"),
        ("a\0b.png", "cannot be read"),
        (tmp_path, "must be a file, but is not"),
        (tmp_path / "pipe.png", "must be a file, but is not"),  # reading it would wait forever
        ("/dev/zero", "must be a file, but is not"),
    ):
        with pytest.raises(PreferenceFormatError, match=message):
            image_source(value)


def test_a_changed_file_is_refused(file: Path) -> None:
    source = image_source(file)
    file.write_bytes(OTHER)
    with pytest.raises(PreferenceFormatError, match="has changed since it was read"):
        source.decode()


@pytest.mark.parametrize("value", ["https://example.org/a.png", "file:///etc/a.png", "s3://bucket/a.png"])
def test_urls_are_refused(value: str) -> None:
    for row in ({"image": value}, {"prompt": [said("user", [{"type": "image_url", "image_url": {"url": value}}])]}):
        with pytest.raises(PreferenceFormatError, match=r"must not be a URL, unless .*HF_REWARD_ALLOW_IMAGE_URLS"):
            to_preference_row({**PAIR, **row})


def test_urls_are_downloaded_if_they_are_allowed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(self: Any, url: str) -> str:
        asked.append(url)
        if "gone" in url:
            raise FileNotFoundError(url)
        return str(file)

    monkeypatch.setattr("datasets.DownloadManager.download", download)
    monkeypatch.setenv("HF_REWARD_ALLOW_IMAGE_URLS", "1")
    assert image_source("https://example.org/a.png") == image_source(file)
    with pytest.raises(PreferenceFormatError, match=r"cannot be downloaded .FileNotFoundError"):
        image_source("https://example.org/gone.png")
    with pytest.raises(PreferenceFormatError, match="must be a data URL"):  # as in a server
        image_source("https://example.org/a.png", local_files=False)
    for value in ("file:///etc/a.png", "s3://bucket/a.png"):
        with pytest.raises(PreferenceFormatError, match="must start with https://"):
            image_source(value)
    assert asked == ["https://example.org/a.png", "https://example.org/gone.png"]


@pytest.mark.parametrize("value", ["data:image/png;base64,%%%", "data:image/png,abc"])
def test_damaged_data_urls_are_refused(value: str) -> None:
    with pytest.raises(PreferenceFormatError, match="data URL"):
        image_source(value)


@pytest.mark.parametrize("value", [3, "", None, {}, {"bytes": None, "path": None}, ["a"], 1.5])
def test_values_of_another_type_are_refused(value: Any) -> None:
    with pytest.raises(PreferenceFormatError, match="must be a path, bytes or an image"):
        image_source(value)


def test_local_paths_are_refused_for_a_server(file: Path) -> None:
    for value in (str(file), file, {"path": str(file)}, {"bytes": str(file)}):
        with pytest.raises(PreferenceFormatError, match="must be a data URL") as caught:
            image_source(value, local_files=False)
        assert str(file)[:40] in caught.value.repeats  # so that the server leaves it out
        part = {"type": "image", "image": value}
        for call in (
            lambda part=part: read_request([said("user", [part])], "a"),
            lambda part=part: request_from_messages([said("user", [part]), said("assistant", "a")]),
            lambda value=value: requests_of_row({"prompt": "p", "response": "a", "images": [value]}),
        ):
            with pytest.raises(PreferenceFormatError, match="must be a data URL"):
                call()
    assert image_source(URL, local_files=False) == image_source(PNG)


@pytest.mark.parametrize(
    "row",
    [
        {**CHAT, "chosen": [said("assistant", [PART, text("a")])]},
        {**CHAT, "chosen": [said("assistant", "a"), said("user", [PART, text("b")]), said("assistant", "c")]},
        {"prompt": "p", "responses": [[said("assistant", [PART])], [said("assistant", "b")]], "ranks": [0, 1]},
        {
            side: [said("user", [{"type": "image", "image": image}, text("What?")]), said("assistant", side)]
            for side, image in (("chosen", PNG), ("rejected", OTHER))
        },
    ],
)
def test_an_image_in_a_response_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(PreferenceFormatError, match="Only a prompt may have images"):
        to_preference_row(row)


def test_an_image_in_the_last_turn_of_messages_is_refused() -> None:
    with pytest.raises(PreferenceFormatError, match="Only a prompt may have images"):
        request_from_messages([said("user", "p"), said("assistant", [PART, text("a")])])


@pytest.mark.parametrize(
    "prompt", ["a\ufdd0b", [said("user", "a\ufdd1b")], [said("user", [text("\ufdd0"), text("b")])]]
)
def test_reserved_code_points_are_refused(prompt: Any) -> None:
    with pytest.raises(PreferenceFormatError, match="reserved for references to images"):
        to_preference_row({**PAIR, "prompt": prompt, "image": PNG})


@pytest.mark.parametrize("value", [[], ["x"], "x", 5, {"a": 1}, [{"sha256": "0" * 64}], [None]])
def test_the_reserved_key_is_refused_from_outside(value: Any) -> None:
    turn = {**said("user", "What?"), IMAGE_SOURCES: value}
    for call in (
        lambda: to_preference_row({**PAIR, "prompt": [turn]}),
        lambda: read_request([turn], "a"),
        lambda: request_from_messages([turn, said("assistant", "a")]),
    ):
        with pytest.raises(PreferenceFormatError, match="`image_sources`, which is a reserved key"):
            call()


# --- groups and bad rows ----------------------------------------------------------------------------------------------


def test_a_group_is_the_same_image_and_question(file: Path) -> None:
    def group(**columns: Any) -> Any:
        return to_preference_row({**PAIR, **columns}).group

    same = [group(image=PNG), group(images=[PNG]), group(image=str(file)), group(image=URL, chosen="x", source="y")]
    assert len(set(same)) == 1
    others = [group(image=OTHER), group(image=PNG, prompt="Which?"), group(image=[PNG, PNG]), group()]
    assert len({*same, *others}) == 5


def test_texts_have_readable_references_or_none() -> None:
    row = to_preference_row({**PAIR, "image": PNG})
    content = row.prompt[0]["content"]  # type: ignore[index]
    assert without_references(content) == PAIR["prompt"]
    assert readable(content) == f"[image {image_source(PNG).sha256[:8]}]What is shown?"


def test_the_error_names_the_row_and_the_row_is_not_changed() -> None:
    row = {**PAIR, "image": "gone.png"}
    with pytest.raises(PreferenceFormatError, match=r"Row 7: The image .*gone\.png cannot be read"):
        to_preference_row(row, row_index=7)
    assert row == {**PAIR, "image": "gone.png"}
    given = {**PAIR, "image": PNG, "prompt": [said("user", "What?")]}
    with_references(given)
    assert given == {**PAIR, "image": PNG, "prompt": [said("user", "What?")]}


def test_bad_images_are_bad_rows_of_a_run(tmp_path: Path, chat_tokenizer: Any) -> None:
    folder = save_vision_model(tmp_path, chat_tokenizer, "qwen2_vl")
    tokenizer = vision_tokenizer(chat_tokenizer, "qwen2_vl")
    rule = PreparationRule(images=load_image_processing(str(folder), AutoConfig.from_pretrained(folder), tokenizer))
    bad = [PNG[: len(PNG) // 2], "gone.png", "https://example.org/a.png", _bomb(10_000, 6_401), b"<svg/>"]
    for image in bad:
        with pytest.raises(PreferenceFormatError, match=r"^Row 1: .*[iI]mage"):
            prepare_preferences([{**PAIR, "image": PNG}, {**PAIR, "image": image}], tokenizer, rule)
    rows = [{**PAIR, "image": image} for image in (PNG, *bad, None, OTHER)]
    data, summary = prepare_preferences(rows, tokenizer, replace(rule, skip_bad_rows=True))
    assert [len(row["images"]) for row in data] == [1, 0, 1]
    assert summary.dropped == {"unreadable (images)": 5}


def test_a_broken_image_of_a_dataset_is_a_bad_row_and_its_picture_is_not_decoded_at_once(tmp_path: Path) -> None:
    good = encoded(picture(0))
    values = [{"bytes": good, "path": None}, {"bytes": good[: len(good) // 2], "path": None}]
    columns = {
        "images": [[value] for value in values],
        "prompt": ["a?", "b?"],
        "chosen": ["x"] * 2,
        "rejected": ["y"] * 2,
    }
    features = Features(
        {"images": List(ImageColumn()), **dict.fromkeys(("prompt", "chosen", "rejected"), Value("string"))}
    )
    path = tmp_path / "rows.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(path)
    for source in (Dataset.from_dict(columns, features=features), str(path)):
        rows = load_source(Source(data=source))
        found = [images_in(to_preference_row(row).prompt)[0] for row in rows]
        assert found[0].decode().size == (40, 28)
        with pytest.raises(PreferenceFormatError, match="cannot be decoded"):
            found[1].decode()
