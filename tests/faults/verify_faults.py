"""Plant faults in copies of a model folder, and print what `hf-reward verify` detects.

    python tests/faults/verify_faults.py FOLDER

The faults are common in practice: another pad token, another chat template, a lost head, a head rounded to bfloat16,
and a doubled BOS token. FOLDER is a complete (merged) model saved by hf_reward; it is not changed.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_reward import verify_checkpoint


def main(words: list[str]) -> None:
    """Verify the folder itself, then a copy with each fault."""
    if len(words) != 1 or not (Path(words[0]) / "model.safetensors").is_file():
        raise SystemExit("usage: python tests/faults/verify_faults.py FOLDER (with model.safetensors, not an adapter)")
    table = Table("fault", "result", "largest difference of a reward, float32", show_lines=True)
    for name, plant in FAULTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            copy = linked_copy(Path(words[0]), Path(temporary) / "model")
            plant(copy)
            found = verify_checkpoint(copy, dtypes=["float32"])
        failed = [check for check in found.checks if not check.passed]
        reasons = [f"{check.name}: {check.detail}" for check in failed if check.difference is None]
        rewards = (
            [f"rewards differ in {len(failed) - len(reasons)} ways of scoring"] if len(failed) > len(reasons) else []
        )
        table.add_row(name, "\n".join([*reasons, *rewards]) or "equal", f"{found.largest_difference():.1e}")
    Console(width=120).print(table)


def linked_copy(folder: Path, copy: Path) -> Path:
    """Return a copy of links to the files; a fault replaces the file that it changes."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).symlink_to(path.resolve())
    return copy


def change_json(path: Path, **changes: object) -> None:
    """Change top-level fields of a JSON file."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.unlink()
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def change_template(folder: Path, change: Callable[[str], str]) -> None:
    """Rewrite the chat template."""
    path = folder / "chat_template.jinja"
    text = change(path.read_text(encoding="utf-8"))
    path.unlink()
    path.write_text(text, encoding="utf-8")


def change_head(folder: Path, change: Callable[[Tensor], Tensor | None]) -> None:
    """Rewrite or remove the head's weights."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if name.startswith(("score.", "classifier."))]:
        head = change(weights.pop(name))
        if head is not None:
            weights[name] = head
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})


def change_pad_token(folder: Path) -> None:
    """Use the token that ends a turn for padding, like many tokenizers."""
    record = json.loads((folder / "reward_config.json").read_text(encoding="utf-8"))
    last = int(record["probes"]["conversations"][0]["input_ids"].split()[-1])
    change_json(folder / "config.json", pad_token_id=last)


FAULTS: dict[str, Callable[[Path], object]] = {
    "none": lambda folder: None,
    "a changed pad token": change_pad_token,
    "a changed template": lambda folder: change_template(folder, lambda text: text.replace("\n", "", 1).rstrip() + " "),
    "a dropped head": lambda folder: change_head(folder, lambda head: None),
    "a head rounded to bfloat16": lambda folder: change_head(folder, lambda head: head.bfloat16().float()),
    "a doubled BOS": lambda folder: change_template(folder, lambda text: "{{ bos_token }}" + text),
}


if __name__ == "__main__":
    main(sys.argv[1:])
