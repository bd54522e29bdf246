"""The bundle's archive becomes a folder once; broken archives leave nothing; over HTTP from a server that fails at first."""

import functools
import hashlib
import json
import shutil
import threading
import time
import zipfile
from pathlib import Path

import pytest

from nanochat_lit import cli
from nanochat_lit.common.downloads import download
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.export import save_export
from nanochat_lit.evaluation.core import BUNDLE_URL, fetch_bundle


def archive(path, names=("eval_bundle/core.yaml", "eval_bundle/eval_data/x/copa.jsonl")):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, f"content of {name}")
    return path.read_bytes()


def test_it_is_downloaded_once(tmp_path):
    asked = []

    def fetch(url, path, sha256):
        asked.append((url, sha256))
        archive(path)

    for _ in range(2):
        folder = fetch_bundle(tmp_path, fetch=fetch)
        assert (folder / "eval_data/x/copa.jsonl").read_text() == "content of eval_bundle/eval_data/x/copa.jsonl"
    assert asked == [(BUNDLE_URL, None)]
    names = ["eval_bundle", "eval_bundle.lock", "eval_bundle.sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_checksum_also_holds_for_what_is_kept(tmp_path):
    digests = []

    def fetch(url, path, sha256):
        digests.append(hashlib.sha256(archive(path)).hexdigest())

    fetch_bundle(tmp_path, fetch=fetch)
    assert fetch_bundle(tmp_path, digests[0].upper(), fetch=fetch) == tmp_path / "eval_bundle"
    with pytest.raises(UserError, match=f"sha256 {digests[0]}, not abc; delete it"):
        fetch_bundle(tmp_path, "abc", fetch=fetch)
    (tmp_path / "eval_bundle.sha256").unlink()
    with pytest.raises(UserError, match="sha256 unknown, not abc"):
        fetch_bundle(tmp_path, "abc", fetch=fetch)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>sorry</html>", "not a complete zip file"),
        ("cut", "not a complete zip file"),
        ("damaged", "not a complete zip file"),
        ("other", "not the CORE bundle"),
        ("bomb", r"would unpack to 50,000,000 bytes; it is not the CORE bundle"),
    ],
)
def test_a_broken_archive_leaves_nothing(content, message, tmp_path):
    def fetch(url, path, sha256):
        whole = archive(path, ("readme.txt",) if content == "other" else ("eval_bundle/core.yaml",))
        damaged = whole.replace(b"content of", b"kontent of", 1)
        if content == "bomb":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("eval_bundle/core.yaml", bytes(50_000_000))
            return
        path.write_bytes({"other": whole, "cut": whole[:-30], "damaged": damaged}.get(content, content))

    with pytest.raises(UserError, match=message):
        fetch_bundle(tmp_path, fetch=fetch)
    assert [path.name for path in tmp_path.iterdir()] == ["eval_bundle.lock"]


def test_without_a_network_the_way_out_is_told(tmp_path):
    def fetch(url, path, sha256):
        raise UserError(f"{url} cannot be downloaded")

    with pytest.raises(UserError, match="give the folder with bundle"):
        fetch_bundle(tmp_path, fetch=fetch)


@pytest.fixture
def patient(monkeypatch):
    """Downloads as usual, without the pauses."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64)
    return functools.partial(download, pause=lambda _: None)


@pytest.fixture
def served(fault_server, core_bundle, tmp_path):
    """A server that has the archive of the bundle, and the archive's checksum."""
    shutil.copytree(core_bundle, tmp_path / "packed" / "eval_bundle")
    name = shutil.make_archive(str(fault_server.folder / "eval_bundle"), "zip", tmp_path / "packed", "eval_bundle")
    return fault_server, hashlib.sha256(Path(name).read_bytes()).hexdigest()


def test_over_http_it_comes_whole_after_faults(served, core_bundle, tmp_path, patient):
    server, sha256 = served
    server.faults.by_name["eval_bundle.zip"] = [503, (429, 3), "drop", "wrong"]
    folder = fetch_bundle(tmp_path / "kept", sha256, f"{server.url}/eval_bundle.zip", patient)
    files = [path.relative_to(core_bundle) for path in core_bundle.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert all((folder / path).read_bytes() == (core_bundle / path).read_bytes() for path in files)
    assert [seen.status for seen in server.asked("eval_bundle.zip")] == [503, 429, 200, 206, 200]  # the client resumes


def test_over_http_a_wrong_archive_is_not_kept(served, tmp_path, patient):
    server, sha256 = served
    server.faults.by_name["eval_bundle.zip"] = ["wrong"] * 5
    with pytest.raises(UserError, match=f"sha256 .*, not {sha256}.*give the folder with bundle"):
        fetch_bundle(tmp_path / "kept", sha256, f"{server.url}/eval_bundle.zip", patient)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["eval_bundle.lock"]


def test_over_http_those_who_ask_together_fetch_once(served, tmp_path):
    """Threads stand for ranks: each opens the lock file itself, and that is what the lock goes by."""
    server, sha256 = served
    server.bytes_per_s, folders = 200_000, []
    ask = functools.partial(fetch_bundle, tmp_path / "kept", sha256, f"{server.url}/eval_bundle.zip")
    threads = [threading.Thread(target=lambda: folders.append(ask())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "kept" / "eval_bundle"] * 3
    assert len(server.asked("eval_bundle.zip")) == 1


def test_core_without_a_bundle_downloads_it_and_then_needs_no_server(
    served, core_bundle, tmp_path, monkeypatch, capsys, random_model, tokenizer
):
    server, sha256 = served
    monkeypatch.delenv(
        "XDG_CACHE_HOME"
    )  # else matplotlib, which keeps what it knows of fonts there, looks for them again
    address = functools.partial(fetch_bundle, tmp_path / "kept", url=f"{server.url}/eval_bundle.zip")
    monkeypatch.setattr("nanochat_lit.evaluation.core.fetch_bundle", address)
    save_export(tmp_path / "export", random_model(sequence_len=256), tokenizer)
    command = ["evaluate", "core", "--model", str(tmp_path / "export"), "--compute_dtype", "float32", "--device", "cpu"]
    command += ["--max_per_task", "5", "--tasks", '["copa"]', "--json"]
    reports = []
    for options in (["--bundle_sha256", sha256], [], ["--bundle", str(core_bundle)]):
        assert cli.main([*command, *options]) == 0
        reports.append(json.loads(capsys.readouterr().out))
        server.faults.by_name["*"] = [404] * 9
    assert len(server.asked("eval_bundle.zip")) == 1
    assert reports[0]["bundle"] == str(tmp_path / "kept" / "eval_bundle")
    answers = [[(task["label"], task["accuracy"]) for task in report["tasks"]] for report in reports]
    assert answers[0] == answers[1] == answers[2]
    assert cli.main([*command, "--bundle_sha256", "00"]) == 2
    assert f"sha256 {sha256}, not 00; delete it" in capsys.readouterr().err
