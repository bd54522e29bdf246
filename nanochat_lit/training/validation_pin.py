"""What a run validates with, written down when it begins, so that its figures stay comparable."""

from pathlib import Path

from nanochat_lit.common.errors import UserError
from nanochat_lit.common.paths import read_json, write_json


def pin_validation(path: Path, found: dict[str, str], must_match: bool) -> None:
    """Write down what a run validates with, or compare it with what was written when the run began.

    Args:
        path: Where it is written.
        found: The sha256 of each file, by name.
        must_match: This continues or measures the run.

    Raises:
        UserError: Names the file that is missing or another one.
    """
    if not (must_match and path.is_file()):
        if found:
            write_json(path, found)
        return
    for name, sha256 in read_json(path).items():
        if name not in found:
            others = ", ".join(found) or "nothing"
            raise UserError(f"this run validates with '{name}', but the data now validate with {others}; put it back")
        if found[name] != sha256:
            raise UserError(
                f"the validation file '{name}' has changed since this run began (sha256 {found[name]}, then {sha256}): "
                "its figures would not compare; put the file back, or start a new run"
            )
