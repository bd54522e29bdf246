"""Downloads of data sets from a server on this machine that drops, truncates, lies and is busy."""

import hashlib
import itertools
import os
import random
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_lit import cli
from nanochat_lit.common import downloads
from nanochat_lit.common.errors import UserError
from nanochat_lit.data import hub
from nanochat_lit.data.hub import DataSet, RemoteFile, ShardFolder
from nanochat_lit.data.hub_files import ClimbMix, FineWebEdu, HubFiles


def write_shard(path, seed, num_rows=60):
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"shard {seed} row {row}: {rng.random()} " * rng.randint(1, 30) for row in range(num_rows)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=16, compression="zstd")
    return texts


@pytest.fixture
def climbmix(fault_server):
    """Three training shards and the validation shard, in ClimbMix's layout."""
    numbers = [0, 1, 2, 6542]
    fault_server.texts = {
        number: write_shard(fault_server.folder / f"shard_{number:05d}.parquet", number) for number in numbers
    }
    return fault_server


def same_files(server, folder):
    names = sorted(path.name for path in folder.glob("*.parquet"))
    return names == sorted(path.name for path in server.folder.glob("*.parquet")) and all(
        (folder / name).read_bytes() == (server.folder / name).read_bytes() for name in names
    )


def leftovers(folder):
    return [path.name for path in folder.iterdir() if ".partial" in path.name]


def fetch(server, folder, name="shard_00000.parquet", mirror=True, **about):
    """Download one shard without waiting between attempts; the seconds that it would have waited."""
    pauses = []
    file = RemoteFile(path=name, **about)
    source = DataSet(repo="a/b", mirror=server.url if mirror else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", pauses.append)  # that of the hub's client
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
        ShardFolder(folder).fetch(source, [file], pause=pauses.append)
    return pauses


def test_the_command_downloads_all_and_does_it_once(climbmix, tmp_path, capsys):
    options = ["--shards", "3", "--folder", str(tmp_path / "here"), "--mirror", climbmix.url]
    assert cli.main(["data", "download", "climbmix", *options]) == 0
    assert same_files(climbmix, tmp_path / "here")
    assert leftovers(tmp_path / "here") == []
    captured = capsys.readouterr()
    assert "3 training shards and shard_06542.parquet for validation" in captured.out
    assert "4 files complete" in captured.err
    num_requests = len(climbmix.seen)
    assert cli.main(["data", "download", "climbmix", *options]) == 0
    assert len(climbmix.seen) == num_requests, "what is there is not asked for again"
    source = ClimbMix(3, folder=str(tmp_path / "here"))
    assert sorted(source.documents("train")) == sorted(itertools.chain(*(climbmix.texts[n] for n in range(3))))
    assert list(source.documents("val")) == climbmix.texts[6542]
    assert sorted(source.iterate("train", 0)) == sorted(source.iterate("train", 1))
    assert list(source.iterate("train", 0)) != list(source.iterate("train", 1))


def test_a_broken_connection_is_taken_up_where_it_broke(climbmix, tmp_path):
    climbmix.faults.by_name["shard_00000.parquet"] = ["drop", "drop"]
    fetch(climbmix, tmp_path / "here")
    size = (climbmix.folder / "shard_00000.parquet").stat().st_size
    ranges = [seen.range for seen in climbmix.asked("shard_00000.parquet")]
    assert ranges[0] is None
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in ranges[1:]]
    assert size // 2 - 512 < starts[0] <= size // 2 < starts[1]
    assert (tmp_path / "here" / "shard_00000.parquet").read_bytes() == (
        climbmix.folder / "shard_00000.parquet"
    ).read_bytes()


def test_a_later_call_goes_on_too_unless_the_file_has_changed(climbmix, tmp_path):
    name, folder = "shard_00000.parquet", tmp_path / "here"
    climbmix.faults.by_name[name] = ["drop", 404]
    with pytest.raises(UserError, match=r"shard_00000\.parquet cannot be downloaded.*404"):
        fetch(climbmix, folder)
    assert leftovers(folder)
    assert not (folder / name).exists()
    fetch(climbmix, folder)
    assert climbmix.asked(name)[-1].range is not None
    (folder / name).unlink()
    climbmix.faults.by_name[name] = ["drop", 404]
    with pytest.raises(UserError):
        fetch(climbmix, folder)
    write_shard(climbmix.folder / name, 77, num_rows=90)
    os.utime(climbmix.folder / name, (10**9, 10**9))
    fetch(climbmix, folder)
    assert (folder / name).read_bytes() == (climbmix.folder / name).read_bytes()
    assert leftovers(folder) == []


@pytest.mark.parametrize("fault", ["wrong", "truncate"])
def test_wrong_or_missing_bytes_are_noticed_by_the_hubs_checksum(climbmix, tmp_path, fault, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    climbmix.faults.by_name["shard_00000.parquet"] = [fault]
    assert fetch(climbmix, tmp_path / "here", mirror=False) == [1.0]
    content = (tmp_path / "here" / "shard_00000.parquet").read_bytes()
    assert content == (climbmix.folder / "shard_00000.parquet").read_bytes()
    climbmix.faults.by_name["shard_00001.parquet"] = [fault] * 5
    with pytest.raises(
        UserError,
        match=r"shard_00001\.parquet.*sha256.*tried 5 times|shard_00001\.parquet.*received .* bytes.*tried 5 times",
    ):
        fetch(climbmix, tmp_path / "here", "shard_00001.parquet", mirror=False)
    assert not (tmp_path / "here" / "shard_00001.parquet").exists()


def test_without_a_checksum_length_and_footer_are_checked(climbmix, tmp_path):
    climbmix.faults.by_name["shard_00000.parquet"] = ["truncate"] * 5
    with pytest.raises(UserError, match="bytes instead of"):
        fetch(climbmix, tmp_path / "here")
    path = climbmix.folder / "shard_00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # now the server states that length too
    with pytest.raises(UserError, match="not a complete parquet file"):
        fetch(climbmix, tmp_path / "here")
    path.write_bytes(whole)
    size = (climbmix.folder / "shard_00001.parquet").stat().st_size
    climbmix.faults.by_name["shard_00001.parquet"] = ["truncate"]
    fetch(climbmix, tmp_path / "here", "shard_00001.parquet", size=size)
    (climbmix.folder / "SHA256SUMS").write_text(
        "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
            for path in climbmix.folder.glob("*.parquet")
        )
    )
    climbmix.faults.by_name["shard_00002.parquet"] = ["wrong"]
    source = ClimbMix(3, folder=str(tmp_path / "all"))
    start = time.monotonic()
    source.download(climbmix.url)
    assert 1.0 <= time.monotonic() - start < 5.0  # one second between the two attempts
    assert same_files(climbmix, tmp_path / "all")


def test_busy_servers_are_waited_for_as_they_ask(climbmix, tmp_path):
    climbmix.faults.by_name["shard_00000.parquet"] = [
        (429, 7),
        429,
        503,
    ]
    pauses = fetch(climbmix, tmp_path / "here")
    assert pauses[0] >= 7
    assert len(pauses) == 3


def test_servers_that_know_no_ranges_send_all_again(climbmix, tmp_path):
    climbmix.faults.by_name["shard_00000.parquet"] = ["drop", "no_range"]
    fetch(climbmix, tmp_path / "here")
    content = (tmp_path / "here" / "shard_00000.parquet").read_bytes()
    assert content == (climbmix.folder / "shard_00000.parquet").read_bytes()


def test_one_failure_leaves_the_others_whole(climbmix, tmp_path):
    (climbmix.folder / "shard_00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard_00001\.parquet cannot be downloaded \(.*404"):
        ClimbMix(3, folder=str(tmp_path / "here")).download(climbmix.url)
    assert same_files(climbmix, tmp_path / "here")
    assert leftovers(tmp_path / "here") == []


def test_the_token_goes_to_the_hub_and_no_further(climbmix, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(climbmix, tmp_path / "here", mirror=False)
    tokens = {seen.path.split("/")[1]: seen.token for seen in climbmix.seen}
    assert tokens == {"datasets": "Bearer secret", "cdn": None}
    climbmix.seen.clear()
    fetch(climbmix, tmp_path / "mirrored")
    assert {seen.token for seen in climbmix.seen} == {None}
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "here").iterdir() if path.suffix == ".json")


def test_offline_forbids_requests_but_not_downloaded_files(climbmix, tmp_path, monkeypatch):
    ClimbMix(1, folder=str(tmp_path / "mirrored")).download(climbmix.url)
    num_requests = len(climbmix.seen)
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment on import
    for source in (ClimbMix(1, folder=str(tmp_path / "here")), FineWebEdu(1, folder=str(tmp_path / "edu"))):
        with pytest.raises(
            UserError, match=r"cannot be downloaded .*offline mode is enabled.*unset the `HF_HUB_OFFLINE"
        ):
            source.download()
    ClimbMix(1, folder=str(tmp_path / "mirrored")).prepare()
    assert len(climbmix.seen) == num_requests


def test_any_data_set_by_the_list_of_the_hub(fault_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", fault_server.url)
    for number in range(5):
        write_shard(fault_server.folder / "sample" / "10BT" / f"{number:03d}.parquet", number)
    write_shard(fault_server.folder / "sample" / "100BT" / "000.parquet", 9)
    source = FineWebEdu(2, folder=str(tmp_path / "edu"))
    source.download()
    assert sorted(path.name for path in (tmp_path / "edu").glob("*.parquet")) == [
        "sample__10BT__000.parquet", "sample__10BT__001.parquet", "sample__10BT__004.parquet"
    ]  # fmt: skip
    assert next(source.documents("val")).startswith("shard 4")
    options = ["--folder", str(tmp_path / "any"), "--pattern", "sample/*/000.parquet", "--shards", "1"]
    assert cli.main(["data", "download", "some/thing", *options]) == 0
    assert cli.main(["data", "download", "some/thing", "--pattern", "*.csv"]) == 2
    assert "no file that matches '*.csv' (it has, among others: sample/100BT/000.parquet" in capsys.readouterr().err
    with pytest.raises(UserError, match="has 4 training files"):
        FineWebEdu(9, folder=str(tmp_path / "more")).download()


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/x.parquet", "a/../x.parquet", "a//x.parquet", "a\\x.parquet"])
def test_a_list_cannot_lead_out_of_the_folder(path):
    with pytest.raises(UserError, match="not a path within a data set"):
        RemoteFile(path=path)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://localhost/x"])
def test_redirects_lead_to_http_only(climbmix, tmp_path, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    climbmix.redirect = address
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(climbmix, tmp_path / "here", mirror=False)
    assert list((tmp_path / "here").glob("*.parquet")) == []


def test_validation_is_pinned(climbmix, tmp_path):
    folder = tmp_path / "here"
    ClimbMix(1, folder=str(folder)).download(climbmix.url)
    ClimbMix(2, folder=str(folder)).download(climbmix.url)
    assert list(ClimbMix(2, folder=str(folder)).documents("val")) == climbmix.texts[6542], (
        "more shards, the same validation"
    )
    path = folder / "shard_06542.parquet"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    ClimbMix(2, folder=str(folder), validation_sha256=found).prepare()
    with pytest.raises(
        UserError, match=r"shard_06542\.parquet' has the sha256 .*validation_sha256 of the recipe has 00"
    ):
        ClimbMix(2, folder=str(folder), validation_sha256="00" * 32).prepare()
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(UserError, match=rf"shard_06542\.parquet' has the sha256 .*manifest\.json' has {found}"):
        ClimbMix(2, folder=str(folder)).prepare()
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match=r"shard_06542\.parquet' has .* bytes, but .* when it was downloaded"):
        ClimbMix(2, folder=str(folder)).prepare()
    path.unlink()
    (climbmix.folder / "shard_06542.parquet").unlink()
    with pytest.raises(UserError, match=r"shard_06542\.parquet cannot be downloaded"):
        ClimbMix(2, folder=str(folder)).prepare(climbmix.url)


def test_a_full_disk_is_said_before_and_when_it_happens(climbmix, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", climbmix.url)
    usage = hub.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"the 3 shards need [\d,]+ bytes and .* has 1,000 free"):
        HubFiles("a/b", num_shards=2, folder=str(tmp_path / "here")).download()
    monkeypatch.undo()
    (tmp_path / "here2").mkdir()

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads._Transfer, "_fetch", full)
    with pytest.raises(UserError, match=r"no space left for '.*shard_.*parquet'"):
        ClimbMix(3, folder=str(tmp_path / "here2")).download(climbmix.url)
    assert list((tmp_path / "here2").glob("*.parquet")) == []
    assert leftovers(tmp_path / "here2") == []


PROGRAM = """
import sys, time
from nanochat_lit.data.hub_files import ClimbMix
source = ClimbMix(3, folder=sys.argv[1], window=1)
source.prepare(sys.argv[2])
print("ready", flush=True)
time.sleep(60)
"""


def test_training_data_are_read_while_later_shards_arrive(climbmix, tmp_path):
    """A slow server: the first documents are there before the last shards, and reading goes on as they come."""
    folder = tmp_path / "here"
    source = ClimbMix(3, folder=str(folder), window=1)
    climbmix.bytes_per_s = 100_000  # a shard takes about a quarter of a second
    source.prepare(climbmix.url)
    try:
        there = {path.name for path in folder.glob("*.parquet")}
        assert "shard_06542.parquet" in there
        assert len(there) < 4, "only what is needed first was waited for"
        documents = source.iterate("train", 0)
        first = next(documents)
        assert len({path.name for path in folder.glob("*.parquet")}) < 4
        assert sorted([first, *documents]) == sorted(itertools.chain(*(climbmix.texts[n] for n in range(3))))
        assert same_files(climbmix, folder)
    finally:
        source.close()


def test_who_waits_is_told_what_went_wrong(climbmix, tmp_path):
    order = ClimbMix(3, folder=str(tmp_path / "order"), window=1)
    order.download(climbmix.url)
    last = order.files[order.file_order("train", 0)[-1]].path.name
    (climbmix.folder / last).unlink()
    source = ClimbMix(3, folder=str(tmp_path / "here"), window=1)
    source.prepare(climbmix.url)
    with pytest.raises(UserError, match=rf"{last}' has not arrived: .*{last} cannot be downloaded"):
        list(source.iterate("train", 0))
    source.close()
    (tmp_path / "here" / ".failed.json").unlink()
    with pytest.raises(UserError, match=rf"{last}' does not exist, and no process is downloading it"):
        list(ClimbMix(3, folder=str(tmp_path / "here"), window=1).iterate("train", 0))


def test_the_background_download_ends_with_its_parent(climbmix, tmp_path):
    climbmix.bytes_per_s = 20_000
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "here"), climbmix.url], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
    shards = ShardFolder(tmp_path / "here")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with hub.locked(shards.folder / hub.LOCK, wait=False) as free:
            if free:
                break
        time.sleep(0.05)
    assert free
    assert len(list(shards.folder.glob("*.parquet"))) < 4
    climbmix.bytes_per_s = None
    ClimbMix(3, folder=str(shards.folder)).download(climbmix.url)
    assert same_files(climbmix, shards.folder)
