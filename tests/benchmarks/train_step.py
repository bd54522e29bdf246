"""A float32 training step of nanochat-lit or of nanochat on a CPU, in a process of its own; run the two by turns.

python tests/benchmarks/train_step.py ours --depth 4 --vocab 8192 --rows 8 --steps 8
python tests/benchmarks/train_step.py CHECKOUT_OF_NANOCHAT --depth 4 --vocab 8192 --rows 8 --steps 8
"""

import argparse
import resource
import statistics
import sys
import time

import torch

WARM_STEPS = 3
SEQUENCE_LEN = 512
HEAD_DIM = 64


def ours(depth, vocab):
    from nanochat_lit.common.compilers import use_configured_compiler
    from nanochat_lit.model import GPT, GPTConfig
    from nanochat_lit.optim import MuonAdamW, param_groups

    config = GPTConfig.from_depth(depth, vocab_size=vocab, sequence_len=SEQUENCE_LEN, head_dim=HEAD_DIM)
    model = GPT(config, torch.float32)
    model.init_weights(torch.Generator().manual_seed(0))
    use_configured_compiler()
    model.compile_for_training()
    return model, MuonAdamW(param_groups(model))


def nanochat(checkout, depth, vocab):
    sys.path.insert(0, checkout)
    from nanochat.gpt import GPT, GPTConfig

    shape = {"n_layer": depth, "n_head": depth, "n_kv_head": depth, "n_embd": HEAD_DIM * depth}
    model = GPT(GPTConfig(sequence_len=SEQUENCE_LEN, vocab_size=vocab, **shape))
    model.init_weights()
    return torch.compile(model, dynamic=False), model.setup_optimizer()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", help="ours, or the path of a checkout of nanochat")
    for name, default in (("depth", 4), ("vocab", 8192), ("rows", 8), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    shape = options.depth, options.vocab
    model, optimizer = ours(*shape) if options.who == "ours" else nanochat(options.who, *shape)
    generator, seconds = torch.Generator().manual_seed(1), []
    for _ in range(WARM_STEPS + options.steps):
        batch = torch.randint(options.vocab, (options.rows, SEQUENCE_LEN + 1), generator=generator)
        start_s = time.perf_counter()
        loss = model(batch[:, :-1], batch[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start_s)
    rate = options.rows * SEQUENCE_LEN / statistics.median(seconds[WARM_STEPS:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{options.who}: {rate:,.0f} tokens/s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
