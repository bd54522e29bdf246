"""Download and cache of the CORE bundle."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from nanochat_lit.common.downloads import download, file_sha256, locked
from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import atomic_write, cache_folder

MAX_EXPANSION = 100
"""Maximum ratio of unpacked to packed size; the bundle's ratio is 4."""
BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


def fetch_bundle(
    cache: Path | None = None, sha256: str | None = None, url: str = BUNDLE_URL, fetch: Callable[..., object] = download
) -> Path:
    """Return the folder of the bundle, downloading it once; concurrent processes wait for the first.

    Args:
        cache: Cache folder; None is the user's cache folder.
        sha256: Expected checksum of the archive, also checked for an earlier download. None only verifies the archive's
            internal checksums.
        url: URL of a zip file with the folder eval_bundle.
        fetch: Download function of (url, path, sha256).

    Raises:
        UserError: If the download fails, the file is not such an archive, or the cached archive has another checksum.
    """
    cache = cache_folder() if cache is None else cache
    folder, record = cache / "eval_bundle", cache / "eval_bundle.sha256"
    with locked(cache / "eval_bundle.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".eval_bundle.") as workplace:
                archive = Path(workplace) / "eval_bundle.zip"
                try:
                    fetch(url, archive, sha256)
                except UserError as error:
                    raise UserError(
                        f"{error}; download it on another machine and give the folder with bundle"
                    ) from None
                found = file_sha256(archive)
                _unpack(archive, Path(workplace) / "unpacked", url)
                with atomic_write(record, "w") as file:
                    file.write(found + "\n")
                shutil.move(Path(workplace) / "unpacked" / "eval_bundle", folder)
        kept = record.read_text(encoding="utf-8").strip() if record.is_file() else "unknown"
        if sha256 is not None and kept != sha256.lower():
            raise UserError(
                f"the bundle in {folder} came from an archive with the sha256 {kept}, not {sha256}; delete it"
            )
    return folder


def _unpack(archive: Path, folder: Path, url: str) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            unpacked = sum(entry.file_size for entry in file.infolist())  # zipfile never extracts more than this
            if unpacked > MAX_EXPANSION * archive.stat().st_size:
                raise UserError(f"{url} would unpack to {unpacked:,} bytes; it is not the CORE bundle")
            file.extractall(folder)  # verifies checksums; names cannot point outside the folder
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise UserError(f"{url} is not a complete zip file ({error})") from None
    if not (folder / "eval_bundle" / "core.yaml").is_file():
        raise UserError(f"{url} does not contain eval_bundle/core.yaml; it is not the CORE bundle")
