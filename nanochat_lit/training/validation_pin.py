"""Records checksums of the validation files at the start of a run, so that its metrics stay comparable."""

from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json


def pin_validation(path: Path, found: dict[str, str], must_match: bool) -> None:
    """Write the checksums of the validation files, or compare them with those written at the start of the run.

    Args:
        path: File of the checksums.
        found: SHA-256 of each file, by name.
        must_match: Compare, because the run is resumed or evaluated.

    Raises:
        UserError: If a file is missing or differs; names the file.
    """
    if not (must_match and path.is_file()):
        if found:
            write_json(path, found)
        return
    for name, sha256 in read_json(path).items():
        if name not in found:
            others = ", ".join(found) or "nothing"
            raise UserError(f"this run validates with '{name}', but the data now have {others}; restore the file")
        if found[name] != sha256:
            raise UserError(
                f"the validation file '{name}' has changed since this run began (sha256 {found[name]}, then {sha256}): "
                "metrics would not be comparable; restore the file, or start a new run"
            )
