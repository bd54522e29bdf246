"""The CORE bundle from the internet, kept on this machine."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from nanochat_lit.common.downloads import cache_folder, download, locked
from nanochat_lit.common.errors import UserError

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"


def fetch_bundle(
    cache: Path | None = None, sha256: str | None = None, url: str = BUNDLE_URL, fetch: Callable[..., None] = download
) -> Path:
    """The folder of the bundle, downloaded if it is not there yet; processes that ask at the same time wait for one.

    Args:
        cache: Where it is kept; None is the user's cache folder.
        sha256: Checksum of the archive; None trusts the address, and checks the archive against its own checksums.
        url: Of a zip file with the folder eval_bundle.
        fetch: Downloads (url, path, sha256).

    Raises:
        UserError: If it cannot be had, or is not such an archive.
    """
    cache = cache_folder() if cache is None else cache
    folder = cache / "eval_bundle"
    with locked(cache / "eval_bundle.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache, prefix=".eval_bundle.") as workplace:
                archive = Path(workplace) / "eval_bundle.zip"
                try:
                    fetch(url, archive, sha256)
                except UserError as error:
                    raise UserError(f"{error}; download it elsewhere and give the folder with bundle") from None
                _unpack(archive, Path(workplace) / "unpacked", url)
                shutil.move(Path(workplace) / "unpacked" / "eval_bundle", folder)
    return folder


def _unpack(archive: Path, folder: Path, url: str) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)  # compares every file with its checksum; names cannot lead out of the folder
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise UserError(f"{url} is no whole zip file ({error})") from None
    if not (folder / "eval_bundle" / "core.yaml").is_file():
        raise UserError(f"{url} holds no eval_bundle/core.yaml; it is not the CORE bundle")
