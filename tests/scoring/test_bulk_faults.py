"""A run that is stopped anywhere goes on to the same bytes; what differs from the earlier start is refused."""

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
def test_killed_at_every_step_a_run_goes_on_to_the_same_bytes(source, out, every):
    """The process ends for real, at each call of the operating system that makes files appear or go."""
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
def test_stopped_at_every_step_nothing_temporary_is_left(source, out, every):
    """The same for an exception, as Ctrl-C raises one: whatever can be cleaned up is."""
    expected = undisturbed(source, out)
    for step in range(0, 80, every):
        folder = source.parent / f"stopped-{step}"
        folder.mkdir()
        try:
            with stopped_at(step, stop):
                score_files(FakeScorer(), source, folder / out, settings())
        except Killed:
            locks = [name for name in content_of(folder) if name.endswith(".lock")]
            assert not [name for name in locks if not name.startswith(f".{out}.")]  # but in what is being removed
        score_files(FakeScorer(), source, folder / out, settings(resume=True))
        assert content_of(folder) == expected


def test_overwriting_may_be_killed_too(source):
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


def test_only_unfinished_shards_are_done_again(source, tmp_path):
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


def test_a_marker_whose_shard_is_gone_or_cut_counts_for_nothing(source, tmp_path):
    expected = undisturbed(source, "folder")
    score_files(FakeScorer(), source, tmp_path / "run" / "folder", settings())
    (tmp_path / "run" / "folder" / "in-00000.jsonl").unlink()
    (tmp_path / "run" / "folder" / "in-00001.jsonl").write_bytes(b"cut")
    (tmp_path / "run" / "folder" / "_done" / "in-00002.json").write_text("{")
    scorer = FakeScorer()
    score_files(scorer, source, tmp_path / "run" / "folder", settings(resume=True))
    assert len(scorer.calls) == 3
    assert content_of(tmp_path / "run") == expected


def test_shards_that_another_run_left_late_count_for_nothing(source, tmp_path):
    """As a process that was still alive when its run was overwritten would leave them, without locks."""
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
    with pytest.raises(ValueError, match=r"in-00001\.jsonl is not what was written there.*`resume=True`"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    monkeypatch.undo()
    scorer = FakeScorer()
    score_files(scorer, source, tmp_path / "o.jsonl", settings(resume=True))
    assert len(scorer.calls) == 1
    assert "Quastion" not in (tmp_path / "o.jsonl").read_text()


def test_a_finished_run_is_not_done_again(source, tmp_path):
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
            path.unlink()  # the next output has it under the same name


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_existing_output_is_refused_until_it_may_be_replaced(source, tmp_path, out):
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


def test_an_unfinished_run_is_refused_until_told_what_to_do(source, tmp_path):
    with pytest.raises(RuntimeError, match="device is gone"):
        score_files(FakeScorer(), write_jsonl(tmp_path / "b" / "in.jsonl", [*text_rows(5), {"prompt": "", "response":
                    "BOOM"}]), tmp_path / "o.jsonl", settings())  # fmt: skip
    with pytest.raises(FileExistsError, match=r"o\.jsonl\.parts holds an unfinished run.*`resume=True`"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(overwrite=True))
    assert not (tmp_path / "o.jsonl.parts").exists()


def test_a_folder_of_something_else_is_never_touched(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    for options in ({}, {"resume": True}, {"overwrite": True}, {"part": (0, 2)}):
        with pytest.raises(FileExistsError, match=r"holds no scoring run, but thesis\.tex"):
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
def test_another_run_is_refused_and_what_differs_is_named(source, tmp_path, scorer, options, field, finished):
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
        with pytest.raises(ValueError, match="outputs of another run") as caught:
            score_files(FakeScorer(**scorer), source, path, settings(resume=True, **options))
        assert f"  {field}" in str(caught.value)
        assert "`overwrite=True`" in str(caught.value)
        assert content_of(path.parent) == before


def test_changed_inputs_are_refused(source, tmp_path):
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
def test_an_input_that_changed_at_its_size_between_the_sampled_stretches_is_refused(tmp_path, resumed):
    source = write_jsonl(tmp_path / "in.jsonl", text_rows(2500))
    score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500))
    content, times = source.read_bytes(), source.stat()
    place = content.index(b"Question 500?")
    assert 16 * 2**10 < place < len(content) // 3 - 16 * 2**10  # between the first two stretches
    source.write_bytes(content.replace(b"Question 500?", b"Question 501!"))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=r"  inputs.in.jsonl.content: was \"[0-9a-f]{32}\", is \""):
        score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500, resume=True))
    source.write_bytes(content)  # written again with the same content: the same input
    report = score_files(FakeScorer(), source, tmp_path / resumed, settings(rows_per_shard=2500, resume=True))
    assert report.complete


def test_a_large_input_with_another_time_is_refused_and_earlier_manifests_still_resume(
    source, tmp_path, caplog, monkeypatch
):
    folder = tmp_path / "folder"
    score_files(FakeScorer(), source, folder, settings())
    manifest = folder / "_manifest.json"
    content = json.loads(manifest.read_text())
    del content["inputs"]["in.jsonl"]["content"], content["checksum"]  # as earlier versions wrote it
    manifest.write_text(json.dumps(content))
    assert score_files(FakeScorer(), source, folder, settings(resume=True)).complete
    assert "begun by an earlier version of hf_reward" in caplog.text

    monkeypatch.setattr("hf_reward.data.file_identity.FULL_HASH_LIMIT", 100)
    score_files(FakeScorer(), source, tmp_path / "large", settings())
    assert score_files(FakeScorer(), source, tmp_path / "large", settings(resume=True)).complete
    os.utime(source, ns=(1, 1))
    with pytest.raises(ValueError, match=r"  inputs.in.jsonl.modified: was \d+, is 1\n"):
        score_files(FakeScorer(), source, tmp_path / "large", settings(resume=True))


def test_a_file_that_nothing_tells_the_origin_of_cannot_be_resumed(source, tmp_path):
    (tmp_path / "o.jsonl").write_text("")
    with pytest.raises(FileExistsError, match="not what says how it was made"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings(resume=True))


def test_rows_put_aside_by_another_output_are_not_overwritten(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    with pytest.raises(FileExistsError, match=r"o\.quarantine\.jsonl exists"):
        score_files(FakeScorer(), source, tmp_path / "o.parquet", settings())


def test_a_manifest_that_is_none_is_refused(source, tmp_path):
    score_files(FakeScorer(), source, tmp_path / "folder", settings())
    path = tmp_path / "folder" / "_manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    for spoilt in ("{", "{}", json.dumps({**content, "version": 2}), json.dumps({**content, "shards": [[1]]})):
        path.write_text(spoilt)
        with pytest.raises(ValueError, match="is not the manifest of a scoring run"):
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
def test_a_manifest_that_was_changed_is_refused(change, source, tmp_path):
    folder = tmp_path / "folder"
    score_files(FakeScorer(), source, folder, settings())
    path = folder / "_manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed or damaged after it was written"):
        score_files(FakeScorer(), source, folder, settings(resume=True))


@pytest.mark.parametrize("whole", [True, False])
def test_a_finished_shard_that_was_damaged_is_scored_again(whole, source, tmp_path, caplog):
    expected = undisturbed(source, "folder")
    folder = tmp_path / "run" / "folder"
    score_files(FakeScorer(), source, folder, settings())
    shard = folder / "in-00001.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"Question", b"Quastion"))  # of the same size
    if not whole:
        (folder / "_done" / "in-00002.json").unlink()
    scorer = FakeScorer()
    score_files(scorer, source, folder, settings(resume=True))
    assert len(scorer.calls) == (1 if whole else 2)
    assert "in-00001.jsonl is not what was written there" in caplog.text
    assert content_of(tmp_path / "run") == expected


# --- damaged, full ---------------------------------------------------------------------------------------------------


def test_damage_inside_a_file_costs_its_shards_and_no_others(tmp_path):
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
def test_a_full_disk_is_one_clear_error_and_what_is_finished_is_kept(source, tmp_path, monkeypatch, number, out):
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
        OSError, match=r"There is no room .* of 3 shards are finished and kept .*`resume=True`"
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
    with pytest.raises(OSError, match=r"There is no room .*Nothing is scored yet"):
        score_files(FakeScorer(), source, tmp_path / "folder", settings())


@pytest.mark.parametrize("out", ["o.jsonl", pytest.param("o.parquet", marks=FAULTS)])
def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path, out):
    """As `ulimit -f` sets it, in a process of its own."""
    source = write_jsonl(tmp_path / "in.jsonl", text_rows(3_000))
    (tmp_path / "run").mkdir()
    child = os.fork()
    if child == 0:
        with (tmp_path / "said").open("w") as said:
            os.dup2(said.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
            try:
                score_files(FakeScorer(), source, tmp_path / "run" / out, settings(rows_per_shard=250))
            except OSError as error:
                said.write(f"{error.errno} {error}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    said = (tmp_path / "said").read_text()
    assert f"{errno.EFBIG} " in said
    assert "12 of 12 shards are finished and kept" in said  # the shards fit, the joined file does not
    assert "Traceback" not in said
    assert not [name for name in content_of(tmp_path / "run") if name.endswith(".tmp")]
    report = score_files(FakeScorer(), source, tmp_path / "run" / out, settings(rows_per_shard=250, resume=True))
    assert (report.counts.rows_out, report.finished_before) == (3_000, 12)


def test_other_errors_say_how_to_go_on(tmp_path, caplog):
    rows = [*text_rows(9), {"prompt": "p", "response": "BOOM"}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(RuntimeError, match="device is gone"):
        score_files(FakeScorer(), source, tmp_path / "o.jsonl", settings())
    assert "Stopped. 2 of 3 shards are finished and kept" in caplog.text
    assert "resume=True" in caplog.text
    assert len(read_jsonl(tmp_path / "o.jsonl.parts" / "in-00001.jsonl")) == 4
