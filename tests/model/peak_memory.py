"""Program of the memory tests: train two steps in a fresh process and print how far its memory rose, in bytes.

Usage: python peak_memory.py '{"depth": 2, "sequence_len": 256, ...}'. The order of events is the Trainer's: gradients of the
step before are dropped after the forward pass, not before. A toy is trained first: what the libraries load and set up on
their first use belongs to the process, not to the model.
"""

import json
import sys
from pathlib import Path

import torch

from nanochat_lit.model import GPTConfig
from nanochat_lit.model.architecture import build_model
from nanochat_lit.optim import MuonAdamW, param_groups

TOY = {"depth": 1, "vocab_size": 64, "sequence_len": 16, "head_dim": 32, "micro_batch_size": 1}


def resident_bytes(name):
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    status = Path("/proc/self/status").read_text("utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def train(options):
    dtype = getattr(torch, options["dtype"])
    shape = {
        name: options[name] for name in ("vocab_size", "sequence_len", "head_dim", "architecture") if name in options
    }
    config = GPTConfig.from_depth(options["depth"], **shape)
    model = build_model(config, compute_dtype=dtype)
    model.init_weights()
    model.activation_checkpointing = options.get("checkpointing", False)
    if options.get("compile"):
        model.compile_for_training()
    optimizer = MuonAdamW(param_groups(model), torch.bfloat16 if dtype == torch.bfloat16 else None)
    for _ in range(2):
        for micro_batch in range(options.get("accumulate", 1)):
            tokens = torch.randint(config.vocab_size, (options["micro_batch_size"], config.sequence_len + 1))
            loss = model(tokens[:, :-1], tokens[:, 1:])
            if micro_batch == 0:
                optimizer.zero_grad()
            loss.backward()
        optimizer.step()


def main(options):
    train({**options, **TOY})
    before = resident_bytes("VmRSS")
    train(options)
    print(json.dumps({"before": before, "growth": resident_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
