"""The bundle's archive becomes a folder once; broken archives leave nothing."""

import hashlib
import zipfile

import pytest

from nanochat_lit.common.errors import UserError
from nanochat_lit.evaluation.bundle_download import BUNDLE_URL, fetch_bundle


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
        (b"<html>sorry</html>", "no whole zip file"),
        ("cut", "no whole zip file"),
        ("damaged", "no whole zip file"),
        ("other", "not the CORE bundle"),
    ],
)
def test_a_broken_archive_leaves_nothing(content, message, tmp_path):
    def fetch(url, path, sha256):
        whole = archive(path, ("readme.txt",) if content == "other" else ("eval_bundle/core.yaml",))
        damaged = whole.replace(b"content of", b"kontent of", 1)
        path.write_bytes({"other": whole, "cut": whole[:-30], "damaged": damaged}.get(content, content))

    with pytest.raises(UserError, match=message):
        fetch_bundle(tmp_path, fetch=fetch)
    assert [path.name for path in tmp_path.iterdir()] == ["eval_bundle.lock"]


def test_without_a_network_the_way_out_is_told(tmp_path):
    def fetch(url, path, sha256):
        raise UserError(f"{url} cannot be downloaded")

    with pytest.raises(UserError, match="give the folder with bundle"):
        fetch_bundle(tmp_path, fetch=fetch)
