"""The program of test_rank_watch.py: `python rank_watch_program.py FOLDER` lets ranks die in several ways.

In each story three ranks are forked and all but those that die sleep, as in a collective that never comes back. What they
say goes to FOLDER/STORY.err and .out, their exit statuses and the seconds it took to FOLDER/STORY.json.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch.distributed as dist

from nanochat_lit.training.strategies import RankWatch

WORLD = 3
STORIES = {
    "another is killed": ("kill", (1,)),
    "rank 0 is killed": ("kill", (0,)),
    "another fails": ("fail", (2,)),
    "all fail": ("fail", (0, 1, 2)),
    "one is done first": ("done", (1,)),
}


def run(rank, port, death, victims):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    watch = RankWatch(rank, WORLD)
    dist.barrier()
    if death == "kill" and rank in victims:
        os.kill(os.getpid(), signal.SIGKILL)
    if death == "fail" and rank in victims:
        error = ValueError("the third shard is bad")
        watch.fail(error)
        if rank == 0:
            print(f"rank 0 reports: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    if death == "done":
        if rank not in victims:
            time.sleep(2)
        watch.finish()
        print(f"rank {rank} ends well", flush=True)
        os._exit(0)
    time.sleep(60)


def free_ports(count):
    """Free ports below those that the system gives to connections, so that no other story's connection takes one."""
    found = []
    while len(found) < count:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def tell(folder, story, port):
    death, victims = STORIES[story]
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / f"{story}.{name}", os.O_WRONLY | os.O_CREAT), number)
    start_s, children = time.monotonic(), []
    for rank in range(WORLD):
        child = os.fork()
        if child == 0:
            run(rank, port, death, victims)
            os._exit(0)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / f"{story}.json").write_text(json.dumps([statuses, time.monotonic() - start_s]), encoding="utf-8")


def main(folder):
    tellers = []
    for story, port in zip(STORIES, free_ports(len(STORIES)), strict=True):
        teller = os.fork()
        if teller == 0:
            tell(folder, story, port)
            os._exit(0)
        tellers.append(teller)
    for teller in tellers:
        os.waitpid(teller, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
