"""Benchmarks that a checkout has and an installed copy lacks: `python tests/benchmarks/bench.py data|serve|core|llama --help`.

data    tokenizer, packing and loader, beside a plain loop
serve   a server and its clients, beside the engine alone
core    examples per second of `evaluate core`, beside the plain way
llama   prompts and decoding in 8 and 4 bits, beside llama.cpp
"""

import sys

from nanochat_lit import cli

BENCHMARKS = {
    "data": "bench_data:bench_data",
    "serve": "bench_serve:bench_serve",
    "core": "bench_core:bench_core",
    "llama": "bench_llama:bench_llama",
}


def main(argv=None):
    commands = dict(cli.COMMANDS)
    own, cli.PROG = {"bench": (BENCHMARKS, "benchmarks")}, "tests/benchmarks/bench.py"
    try:
        cli.COMMANDS = own
        return cli.main(["bench", *(sys.argv[1:] if argv is None else argv)])
    finally:
        cli.COMMANDS, cli.PROG = commands, "nanochat-lit"


if __name__ == "__main__":
    sys.exit(main())
