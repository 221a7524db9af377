"""Interrupted runs resume to the same bytes; runs with other settings are errors."""

import errno
import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import FakeScorer, Killed, content_of, read_jsonl, settings, stopped_at, text_rows, write_jsonl

from hf_reward.scoring.bulk import score_files

FAULTS = (pytest.mark.slow, pytest.mark.faults)
OUTPUTS = ["o.jsonl", "o.parquet", "folder"]


@pytest.fixture
def source(tmp_path) -> Path:
    rows = [*text_rows(6), b"{half\n", {"prompt": "p", "response": "NAN"}, *text_rows(3)]
    return write_jsonl(tmp_path / "in.jsonl", rows)


def undisturbed(source: Path, out: str) -> dict[str, bytes]:
    folder = source.parent / "undisturbed"
    folder.mkdir(exist_ok=True)
    score_files(FakeScorer(), source, folder / out, settings())
    return content_of(folder)


def die() -> None:
    os._exit(9)


def stop() -> None:
    raise Killed


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "every"), [*(pytest.param(out, 1, marks=FAULTS) for out in OUTPUTS), ("folder", 5)])
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(source, out, every):
    """A real process is killed at each system call that creates, renames or removes files."""
    expected = undisturbed(source, out)
    step, ended = 0, 9
    while ended == 9:
        folder = source.parent / f"killed-{step}"
        folder.mkdir()
        child = os.fork()
        if child == 0:
            with stopped_at(step, die):
                score_files(FakeScorer(), source, folder / out, settings())
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, 9)
        scorer = FakeScorer()
        report = score_files(scorer, source, folder / out, settings(resume=True))
        assert report.complete
        assert content_of(folder) == expected, step
        step += every
    assert step > 40


@pytest.mark.parametrize("every", [pytest.param(3, marks=FAULTS), 8])
@pytest.mark.parametrize("out", OUTPUTS)
def test_an_exception_at_any_step_leaves_no_temporary_files(source, out, every):
    """The same with an exception, as for Ctrl-C: temporary files are removed."""
    expected = undisturbed(source, out)
    for step in range(0, 80, every):
        folder = source.parent / f"stopped-{step}"
        folder.mkdir()
        try:
            with stopped_at(step, stop):
                score_files(FakeScorer(), source, folder / out, settings())
        except Killed:
            locks = [name for name in content_of(folder) if name.endswith(".lock")]
            assert not [
                name for name in locks if not name.startswith(f".{out}.")
            ]  # except in the folder that is being removed
        score_files(FakeScorer(), source, folder / out, settings(resume=True))
        assert content_of(folder) == expected


def test_overwriting_can_be_killed_too(source):
    expected = undisturbed(source, "folder")
    for step in range(0, 100, 7):
        folder = source.parent / f"overwritten-{step}"
        folder.mkdir()
        score_files(FakeScorer(weights="old"), source, folder / "folder", settings(rows_per_shard=2))
        try:
            with stopped_at(step, stop):
                score_files(FakeScorer(), source, folder / "folder", settings(overwrite=True))
        except Killed:
            score_files(FakeScorer(), source, folder / "folder", settings(overwrite=True))
        assert content_of(folder) == expected


def test_only_unfinished_shards_are_scored_again(source, tmp_path):
    class Dying(FakeScorer):
        def score_requests(self, requests, **options):
            if len(self.calls) == 2:
                raise Killed
            return super().score_requests(requests, **options)

    with pytest.raises(Killed):
        score_files(Dying(), source, tmp_path / "o.jsonl", settings())
    scorer = FakeScorer()
    report = score_files(scorer, source, tmp_path / "o.jsonl", settings(resume=True))
    assert (report.finished_before, report.shards, len(scorer.calls)) == (2, 3, 1)
    assert report.counts.rows_in == 11


def test_a_marker_without_a_complete_shard_is_ignored(source, tmp_path):
    expected = undisturbed(source, "folder")
    score_files(FakeScorer(), source, tmp_path / "run" / "folder", settings())
    (tmp_path / "run" / "folder" / "in-00000.jsonl").unlink()
    (tmp_path / "run" / "folder" / "in-00001.jsonl").write_bytes(b"cut")
    (tmp_path / "run" / "folder" / "_done" / "in-00002.json").write_text("{")
    scorer = FakeScorer()
    score_files(scorer, source, tmp_path / "run" / "folder", settings(resume=True))
    assert len(scorer.calls) == 3
    assert content_of(tmp_path / "run") == expected


def test_late_shards_of_another_run_are_ignored(source, tmp_path):
    """Shards of a process that still ran when its run was overwritten, on a file system without locks."""
    score_files(FakeScorer(weights="old"), source, tmp_path / "old", settings())
    expected = undisturbed(source, "folder")
    with pytest.raises(Killed), stopped_at(12, stop):
        score_files(FakeScorer(), source, tmp_path / "run" / "folder", settings())
    for name in ("in-00002.jsonl", "_done/in-00002.json"):
        (tmp_path / "run" / "folder" / name).write_bytes((tmp_path / "old" / name).read_bytes())
    score_files(FakeScorer(), source, tmp_path / "run" / "folder", settings(resume=True))
    assert content_of(tmp_path / "run") == expected


def test_a_shard_that_changed_is_found_when_shards_are_joined(source, tmp_path, monkeypatch):
    from hf_reward.scoring.bulk import run

    real = run.join_shards

    def spoil(target, manifest, counts):
        path = target.shard(manifest.shards[1])
        path.write_bytes(path.read_bytes().replace(b"Question", b"Quastion"))
        real(target, manifest, counts)

    monkeypatch.setattr(run, "join_shards", spoil)
    with pytest.raises(ValueError, match=r"in-00001\.jsonl has changed since it was written.*`resume=True`"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    monkeypatch.undo()
    scorer = FakeScorer()
    score_files(scorer, source, tmp_path / "o.jsonl", settings(resume=True))
    assert len(scorer.calls) == 1
    assert "Quastion" not in (tmp_path / "o.jsonl").read_text()


def test_a_finished_run_is_not_repeated(source, tmp_path):
    for out in OUTPUTS:
        first = score_files(FakeScorer(), source, tmp_path / "run" / out, settings())
        before = content_of(tmp_path / "run")
        scorer = FakeScorer()
        again = score_files(scorer, source, tmp_path / "run" / out, settings(resume=True))
        assert not scorer.calls
        assert again.complete
        assert again.counts == first.counts
        assert content_of(tmp_path / "run") == before
        for path in (tmp_path / "run").glob("*.quarantine.jsonl"):
            path.unlink()  # the next output uses the same name


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_existing_output_is_an_error_unless_overwritten(source, tmp_path, out):
    path = tmp_path / "run" / out
    score_files(FakeScorer(), source, path, settings())
    with pytest.raises(FileExistsError, match=r"`resume=True`.*`overwrite=True`"):
        score_files(FakeScorer(), source, path, settings())
    shorter = write_jsonl(tmp_path / "other" / "in.jsonl", text_rows(2))
    score_files(FakeScorer(), shorter, path, settings(overwrite=True))
    parts = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    assert len(parts) == 1
    assert not path.with_name("o.quarantine.jsonl").exists()
    assert not list(tmp_path.rglob("_quarantine/*"))


def test_an_unfinished_run_needs_resume_or_overwrite(source, tmp_path):
    with pytest.raises(RuntimeError, match="device is gone"):
        score_files(FakeScorer(), write_jsonl(tmp_path / "b" / "in.jsonl", [*text_rows(5), {"prompt": "", "response":
                    "BOOM"}]), tmp_path / "o.jsonl", settings())  # fmt: skip
    with pytest.raises(FileExistsError, match=r"o\.jsonl\.parts contains an unfinished run.*`resume=True`"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(overwrite=True))
    assert not (tmp_path / "o.jsonl.parts").exists()


def test_a_folder_with_other_files_is_never_changed(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    for options in ({}, {"resume": True}, {"overwrite": True}, {"part": (0, 2)}):
        with pytest.raises(FileExistsError, match=r"is not a scoring run, but contains thesis\.tex"):
            score_files(FakeScorer(), source, tmp_path / "mine", settings(**options))
    assert list(content_of(tmp_path / "mine")) == ["thesis.tex"]


def test_files_of_other_names_in_an_output_folder_survive_overwriting(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "folder", settings())
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    score_files(FakeScorer(), source, tmp_path / "folder", settings(overwrite=True, rows_per_shard=100))
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "folder").glob("*.jsonl")] == ["in-00000.jsonl"]


@pytest.mark.parametrize(
    ("scorer", "options", "field"),
    [
        ({"model": "other"}, {}, 'scorer.model: was "fake", is "other"'),
        ({"weights": "other"}, {}, 'scorer.weights: was "w", is "other"'),
        ({"revision": "abc"}, {}, 'scorer.revision: was absent, is "abc"'),
        ({"template_hash": None}, {}, "scorer.template_hash: was absent, is null"),
        ({"versions": {"torch": "2"}}, {}, 'scorer.versions.torch: was "1", is "2"'),
        ({}, {"rows_per_shard": 5}, "settings.rows_per_shard: was 4, is 5"),
        ({}, {"requests_per_pass": 5}, "settings.requests_per_pass: was 10000, is 5"),
        ({}, {"bytes_per_pass": 5}, "settings.bytes_per_pass: was 33554432, is 5"),
        ({}, {"columns": {"response": "response"}}, "settings.columns"),
        ({}, {"reward_column": "r"}, 'settings.reward_column: was "reward", is "r"'),
        ({}, {"rank": True}, "settings.rank: was false, is true"),
        ({}, {"allow_empty": True}, "settings.allow_empty: was false, is true"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_an_error_that_lists_the_differences(source, tmp_path, scorer, options, field, finished):
    for out in ("o.jsonl", "folder"):
        path = tmp_path / str(finished) / out
        path.parent.mkdir(exist_ok=True)
        step = 10**9 if finished else 20
        try:
            with stopped_at(step, stop):
                score_files(FakeScorer(), source, path, settings())
        except Killed:
            assert not finished
        before = content_of(path.parent)
        with pytest.raises(ValueError, match="outputs of a run with other settings") as caught:
            score_files(FakeScorer(**scorer), source, path, settings(resume=True, **options))
        assert f"  {field}" in str(caught.value)
        assert "`overwrite=True`" in str(caught.value)
        assert content_of(path.parent) == before


def test_changed_inputs_are_an_error(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "folder", settings())
    size = source.stat().st_size
    with source.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ValueError, match=rf"inputs.in.jsonl.size: was {size}, is {size + 1}"):
        score_files(FakeScorer(), source, tmp_path / "folder", settings(resume=True))
    other = write_jsonl(tmp_path / "b" / "other.jsonl", text_rows(2))
    with pytest.raises(ValueError, match=r"inputs.other.jsonl.name: was absent"):
        score_files(FakeScorer(), other, tmp_path / "folder", settings(resume=True))


@pytest.mark.parametrize("resumed", ["folder", "o.jsonl"])
def test_a_change_of_equal_size_outside_the_sampled_ranges_is_an_error(tmp_path, resumed):
    source = write_jsonl(tmp_path / "in.jsonl", text_rows(2500))
    score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500))
    content, times = source.read_bytes(), source.stat()
    place = content.index(b"Question 500?")
    assert 16 * 2**10 < place < len(content) // 3 - 16 * 2**10  # between the first two sampled ranges
    source.write_bytes(content.replace(b"Question 500?", b"Question 501!"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=r"  inputs.in.jsonl.content: was \"[0-9a-f]{32}\", is \""):
        score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500, resume=True))
    source.write_bytes(content)  # written again with the same content: the same input
    report = score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500, resume=True))
    assert report.complete


def test_a_large_input_with_another_time_is_an_error_and_earlier_manifests_still_resume(
    source, tmp_path, caplog, monkeypatch
):
    folder = tmp_path / "folder"
    score_files(FakeScorer(), source, folder, settings())
    manifest = folder / "_manifest.json"
    content = json.loads(manifest.read_text())
    del content["inputs"]["in.jsonl"]["content"], content["checksum"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(content))
    assert score_files(FakeScorer(), source, folder, settings(resume=True)).complete
    assert "started by an earlier version of hf_reward" in caplog.text

    monkeypatch.setattr("hf_reward.data.file_identity.FULL_HASH_LIMIT", 100)
    score_files(FakeScorer(), source, tmp_path / "large", settings())
    assert score_files(FakeScorer(), source, tmp_path / "large", settings(resume=True)).complete
    os.utime(source, ns=(1, 1))
    with pytest.raises(ValueError, match=r"  inputs.in.jsonl.modified: was \d+, is 1\n"):
        score_files(FakeScorer(), source, tmp_path / "large", settings(resume=True))


def test_a_file_without_a_record_cannot_be_resumed(source, tmp_path):
    (tmp_path / "o.jsonl").write_text("")
    with pytest.raises(FileExistsError, match="but its record cannot be read"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(resume=True))


def test_the_quarantine_file_of_another_output_is_not_overwritten(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    with pytest.raises(FileExistsError, match=r"o\.quarantine\.jsonl exists"):
        score_files(FakeScorer(), source, tmp_path / "o.parquet", settings())


def test_an_invalid_manifest_is_an_error(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "folder", settings())
    path = tmp_path / "folder" / "_manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    for spoilt in ("{", "{}", json.dumps({**content, "version": 2}), json.dumps({**content, "shards": [[1]]})):
        path.write_text(spoilt)
        with pytest.raises(ValueError, match="is not a valid manifest of a scoring run"):
            score_files(FakeScorer(), source, tmp_path / "folder", settings(resume=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["shards"].pop() and content["names"].pop(),  # a run without its last rows
        lambda content: content["shards"][0].__setitem__(2, content["shards"][0][2] - 1),
        lambda content: content["settings"].update(rows_per_shard=1),
        lambda content: content.update(more=1),
    ],
)
def test_a_changed_manifest_is_an_error(change, source, tmp_path):
    folder = tmp_path / "folder"
    score_files(FakeScorer(), source, folder, settings())
    path = folder / "_manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed or damaged after it was written"):
        score_files(FakeScorer(), source, folder, settings(resume=True))


@pytest.mark.parametrize("is_joined", [True, False])
def test_a_damaged_finished_shard_is_scored_again(is_joined, source, tmp_path, caplog):
    expected = undisturbed(source, "folder")
    folder = tmp_path / "run" / "folder"
    score_files(FakeScorer(), source, folder, settings())
    shard = folder / "in-00001.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"Question", b"Quastion"))  # of the same size
    if not is_joined:
        (folder / "_done" / "in-00002.json").unlink()
    scorer = FakeScorer()
    score_files(scorer, source, folder, settings(resume=True))
    assert len(scorer.calls) == (1 if is_joined else 2)
    assert "in-00001.jsonl has changed since it was written" in caplog.text
    assert content_of(tmp_path / "run") == expected


# --- damaged, full ---------------------------------------------------------------------------------------------------


def test_damage_inside_a_file_affects_only_its_shards(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        table = pa.table({"prompt": [f"{name}{n}" for n in range(40)], "response": ["r"] * 40})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet", row_group_size=10, use_dictionary=False)
    path = tmp_path / "in" / "b.parquet"
    good = path.read_bytes()
    offset = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    path.write_bytes(good[:offset] + bytes(20) + good[offset + 20 :])
    with pytest.raises(ValueError, match="could not be read") as caught:
        score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings(rows_per_shard=10))
    assert "b-00002: " in str(caught.value)
    assert "rows from number 20 on" in str(caught.value)
    assert "11 of 12 shards are finished and kept" in str(caught.value)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 11
    path.write_bytes(good)
    try:
        report = score_files(FakeScorer(), tmp_path / "in", tmp_path / "out", settings(rows_per_shard=10, resume=True))
    except ValueError as error:  # the damage lay where the file is sampled
        assert "inputs.b.parquet.sample" in str(error)  # noqa: PT017
    else:
        assert (report.finished_before, report.complete) == (11, True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("out", OUTPUTS)
def test_a_full_disk_is_one_clear_error_and_finished_shards_are_kept(source, tmp_path, monkeypatch, number, out):
    expected = undisturbed(source, out)
    real, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 12:
            raise OSError(number, os.strerror(number))
        real(handle)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"There is no space left .* of 3 shards are finished and kept .*`resume=True`"
    ) as caught:
        score_files(FakeScorer(), source, tmp_path / "run" / out, settings())
    assert caught.value.errno == number
    assert not [name for name in content_of(tmp_path / "run") if name.endswith((".tmp", ".lock"))]
    score_files(FakeScorer(), source, tmp_path / "run" / out, settings(resume=True))
    assert content_of(tmp_path / "run") == expected


def test_a_disk_that_is_full_from_the_start(source, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"There is no space left .*Nothing is scored yet"):
        score_files(FakeScorer(), source, tmp_path / "folder", settings())


@pytest.mark.parametrize("out", ["o.jsonl", pytest.param("o.parquet", marks=FAULTS)])
def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path, out):
    """As `ulimit -f` sets it, in a separate process."""
    source = write_jsonl(tmp_path / "in.jsonl", text_rows(3_000))
    (tmp_path / "run").mkdir()
    child = os.fork()
    if child == 0:
        with (tmp_path / "message").open("w") as message:
            os.dup2(message.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            try:
                score_files(FakeScorer(), source, tmp_path / "run" / out, settings(rows_per_shard=250))
            except OSError as error:
                message.write(f"{error.errno} {error}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    message = (tmp_path / "message").read_text()
    assert f"{errno.EFBIG} " in message
    assert "12 of 12 shards are finished and kept" in message  # the shards fit, the joined file does not
    assert "Traceback" not in message
    assert not [name for name in content_of(tmp_path / "run") if name.endswith(".tmp")]
    report = score_files(FakeScorer(), source, tmp_path / "run" / out, settings(rows_per_shard=250, resume=True))
    assert (report.counts.rows_out, report.finished_before) == (3_000, 12)


def test_other_errors_explain_how_to_resume(tmp_path, caplog):
    rows = [*text_rows(9), {"prompt": "p", "response": "BOOM"}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(RuntimeError, match="device is gone"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    assert "Stopped. 2 of 3 shards are finished and kept" in caplog.text
    assert "resume=True" in caplog.text
    assert len(read_jsonl(tmp_path / "o.jsonl.parts" / "in-00001.jsonl")) == 4
