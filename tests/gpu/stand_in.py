"""The dry run of check.py for several compute capabilities, on the stand-in for a GPU.

    python tests/gpu/stand_in.py --build BUILT_LIBRARIES --out DIR [--capabilities 75 90] [--parts ...]

Needs a CUDA build of torch. The stand-in is a CUDA runtime whose kernels do nothing: shapes, devices, memory, compilation and
the choice of kernels are real, numbers are not.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CARDS = {
    "75": ("Tesla T4", 15.8),
    "80": ("NVIDIA A100-SXM4-80GB", 79.1),
    "89": ("NVIDIA GeForce RTX 4090", 23.5),
    "90": ("NVIDIA H100 80GB HBM3", 79.1),
    "120": ("NVIDIA GeForce RTX 5090", 31.4),
}
"""Name and memory in GiB by compute capability."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run check.py once for each capability; the exit status is 1 if any run had a part that did not pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--tool", type=Path, default=Path(__file__).with_name("cuda_stand_in"), help="Folder that holds run.sh."
    )
    parser.add_argument("--build", type=Path, required=True, help="Folder of the built libraries.")
    parser.add_argument("--out", type=Path, required=True, help="Receives a folder of results for each capability.")
    parser.add_argument("--capabilities", nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument(
        "--minutes", default="120", help="Limit for each capability; a free machine needs 15. Default 120."
    )
    parser.add_argument("--parts", nargs="+", default=[], help="As of check.py.")
    options = parser.parse_args(argv)
    statuses = {}
    for capability in options.capabilities:
        name, gib = CARDS[capability]
        environment = os.environ | {"FAKE_CC": capability, "FAKE_NAME": name, "FAKE_MEM_GB": str(gib)}
        environment["TORCH_CUDNN_SDPA_DEPRIORITIZED"] = "1"  # the stand-in has no cuDNN
        command = [
            str(options.tool / "run.sh"),
            str(options.build),
            sys.executable,
            str(Path(__file__).with_name("check.py")),
        ]
        command += ["--out", str(options.out / capability), "--minutes", options.minutes]
        command += ["--parts", *options.parts] if options.parts else []
        statuses[capability] = subprocess.run(["bash", *command], env=environment, check=False).returncode
    for capability, status in statuses.items():
        print(f"compute capability {capability}: {'every part passed' if status == 0 else f'exit status {status}'}")
    return int(any(statuses.values()))


if __name__ == "__main__":
    sys.exit(main())
