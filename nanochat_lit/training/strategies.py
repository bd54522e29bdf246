"""Multi-rank strategies: `zero` (sharded optimizer state) and `ddp` (everything replicated), and the watch over their ranks.

Both use the process group, launchers and checkpoints of Lightning's DDP strategy. `zero` omits the DDP wrapper:
gradients accumulate locally, and `MuonAdamW` averages them in its step.

The watch detects within seconds that a rank has died, and ends the other ranks with a one-line error. Otherwise a dead
rank is noticed only in the next collective: immediately with gloo, but after the timeout of the process group (half an
hour) with NCCL. Lightning's launcher and SLURM do not cover every case. Here every rank keeps an idle connection to rank
0. The operating system closes it when a process ends for any reason; TCP keep-alive detects an unreachable machine.
"""

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from inspect import signature
from typing import Any, cast

import torch.distributed as dist
from lightning.fabric.strategies import STRATEGY_REGISTRY
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nanochat_lit.common.errors import UserError
from nanochat_lit.optim import clip_grad_norm
from nanochat_lit.optim.sharding import average_gradients
from nanochat_lit.training.lightning_internals import keep_gradients_local, unwrapped

KEEP_ALIVE_S = 10
"""TCP keep-alive: seconds of silence before the first of three probes, and between probes."""

CONNECT_TIMEOUT_S = 60

GRACE_S = 3.0
"""Seconds a rank waits for its own error after another rank's failure, so that a shared error is reported once."""

EXIT_STATUS = 1


class RankWatch:
    """Connects this rank to the others and watches them from a thread.

    Use it within the lifetime of the process group; with one rank it does nothing.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._peers: dict[socket.socket, int] = {}
        self._lock = threading.Lock()
        self._over = False  # this rank has finished, or reports its own failure
        self._rank_zero_ended = threading.Event()
        if world_size > 1:
            self._connect()
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def finish(self) -> None:
        """Announce a normal exit of this rank."""
        self._leave({"done": True})

    def fail(self, error: BaseException) -> None:
        """Send this rank's error to the others, which exit; rank 0 prints it.

        A failed collective is not an error of this rank: if another one has died, the process exits here.
        """
        words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
        is_collective = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
        if is_collective or isinstance(error, dist.DistError):
            time.sleep(GRACE_S)
        self._leave({"failed": self.rank, "why": f"{type(error).__name__}: {error}".splitlines()[0]})
        if self.rank != 0:
            self._rank_zero_ended.wait(2 * GRACE_S)  # otherwise the launcher might kill rank 0 before it prints

    def _connect(self) -> None:
        """Connect all ranks to rank 0, whose address is broadcast through the process group."""
        if self.rank == 0:
            self._accept()
        else:
            address: list[Any] = [None]
            dist.broadcast_object_list(address, src=0)
            host, port, token = address[0]
            peer = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S)
            peer.settimeout(None)
            peer.sendall(token + self.rank.to_bytes(4, "big"))
            self._peers[peer] = 0
        keep_alive = (("TCP_KEEPIDLE", KEEP_ALIVE_S), ("TCP_KEEPINTVL", KEEP_ALIVE_S), ("TCP_KEEPCNT", 3))
        for peer in self._peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in keep_alive:
                if hasattr(socket, name):  # the option names are platform-dependent
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _accept(self) -> None:
        has_ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
        token = secrets.token_bytes(16)  # rejects unrelated connections to the port
        with socket.create_server(("", 0), family=family, backlog=self.world_size, dualstack_ipv6=has_ipv6) as server:
            server.settimeout(CONNECT_TIMEOUT_S)
            host = os.environ.get("MASTER_ADDR") or "127.0.0.1"  # where other ranks reach the process group of rank 0
            dist.broadcast_object_list([(host, server.getsockname()[1], token)], src=0)
            while len(self._peers) < self.world_size - 1:
                peer, _ = server.accept()
                peer.settimeout(CONNECT_TIMEOUT_S)
                hello = _read(peer, len(token) + 4)
                if hello[: len(token)] == token:
                    peer.settimeout(None)
                    self._peers[peer] = int.from_bytes(hello[len(token) :], "big")

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for peer in self._peers:
                selector.register(peer, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = key.fileobj
                    assert isinstance(peer, socket.socket)
                    news = _receive(peer)
                    if news.get("done"):
                        selector.unregister(peer)
                    else:
                        self._end(self._peers[peer], news)
                        return

    def _end(self, peer: int, news: dict[str, Any]) -> None:
        """Handle the end of another rank: forward the news, report it, and exit."""
        if peer == 0:
            self._rank_zero_ended.set()
        if self._over:
            return
        failed = news.get("failed", peer)
        self._tell({"failed": failed, "why": news.get("why", "")})
        if "failed" in news:
            time.sleep(GRACE_S)  # this rank's main thread may be about to report the same error
        if self._over:
            return
        if self.rank == 0 or "failed" not in news:
            if reason := news.get("why"):
                text = f"rank {failed} failed with {reason}"
            else:
                text = f"rank {failed} died without an error message (killed, or out of memory?)"
            line = f"error: {text}; rank {self.rank} exits too. Resume from the last checkpoint with --ckpt_path last"
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), (line + "\n").encode())
        os._exit(EXIT_STATUS)  # the main thread may be blocked in a collective that never completes

    def _leave(self, news: dict[str, Any]) -> None:
        if not self._over:
            self._over = True
            self._tell(news)

    def _tell(self, news: dict[str, Any]) -> None:
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.sendall((json.dumps(news) + "\n").encode())


def _read(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := peer.recv(count - len(data))):
        data += more
    return data


def _receive(peer: socket.socket) -> dict[str, Any]:
    """Return the message that a rank sends before it exits; empty if it sent none."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and (more := peer.recv(4096)):
            line += more
    return json.loads(line) if line.endswith(b"\n") else {}


class WatchedDDPStrategy(DDPStrategy):
    """Lightning's `ddp`, which also exits promptly with a one-line error when a rank dies.

    Buffers are broadcast once at the start instead of before every forward pass. Those of a GPT are constant, and in
    validation ranks may have different numbers of batches, which would deadlock a broadcast per batch.
    """

    def __init__(self, **kwargs: Any) -> None:
        options = signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"  # before torch 2.13
        super().__init__(**{name: False, **kwargs})
        self._watch: RankWatch | None = None

    def setup_environment(self) -> None:
        """Create the process group and start watching it, because preparing data may take long."""
        super().setup_environment()
        if self._watch is None:
            self._watch = RankWatch(self.global_rank, self.world_size)

    def on_exception(self, exception: BaseException) -> None:
        """Notify the other ranks, except of a SystemExit, which all ranks have agreed on."""
        super().on_exception(exception)
        if self._watch is not None and isinstance(exception, SystemExit):
            self._watch.finish()
        elif self._watch is not None:
            self._watch.fail(exception)

    def teardown(self) -> None:
        """Announce a normal exit and tear down."""
        super().teardown()
        if self._watch is not None:
            self._watch.finish()
            self._watch = None


class ZeroStrategy(WatchedDDPStrategy):
    """ZeRO stage 1: every rank has all parameters and 1/N of the optimizer state.

    Requires `MuonAdamW`, which communicates in its step. Gradients are local until then, so accumulation needs no
    communication; use `global_grad_norm`, `clip_grad_norm` and `average_gradients` before the step. The last backward
    pass of a step already starts to exchange finished gradients.
    """

    def configure_ddp(self) -> None:
        """Broadcast rank 0's parameters and buffers; no DDP wrapper."""
        assert self.model is not None
        broadcast_module(self.model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Shard the module's optimizers."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            shard_optimizer(optimizer)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Overlap communication with a step's last backward pass, unless clipping or loss scaling changes gradients."""
        super().pre_backward(closure_loss)
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        is_last = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_scaled = getattr(self.precision_plugin, "scaler", None) is not None
        if is_last and not is_scaled and not trainer.gradient_clip_val:
            for optimizer in filter(lambda optimizer: hasattr(optimizer, "expect_step"), self.optimizers):
                cast(Any, optimizer).expect_step()


class FabricZeroStrategy(FabricDDP):
    """ZeRO stage 1 for Fabric: `Fabric(strategy=FabricZeroStrategy(), devices=2)`.

    `register_strategies` also makes it available by name. `fabric.setup(model, optimizer)` shards a `MuonAdamW`;
    `optimizer.state_dict()` and `fabric.save` are collective.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keep_gradients_local(self)

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        """Broadcast rank 0's parameters and buffers; no DDP wrapper."""
        broadcast_module(module)
        return module

    def setup_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Shard the optimizer."""
        shard_optimizer(optimizer)
        return optimizer

    def clip_gradients_norm(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = True,
    ) -> Tensor:
        """Clip by the norm of the averaged gradients."""
        if norm_type != 2.0:
            raise UserError(f"norm_type is {norm_type}; strategy zero supports only 2")
        self.precision.unscale_gradients(optimizer)
        norm = clip_grad_norm(optimizer, max_norm)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the gradient norm is {norm.item()}, so gradients cannot be clipped")
        return norm

    def clip_gradients_value(self, module: nn.Module, optimizer: Optimizer, clip_val: float) -> None:
        """Clip the entries of the averaged gradients."""
        average_gradients(optimizer)
        super().clip_gradients_value(module, optimizer, clip_val)


def register_strategies() -> None:
    """Register `zero` with Trainer and Fabric, and replace the Trainer's `ddp` by `WatchedDDPStrategy`."""
    StrategyRegistry.register("zero", ZeroStrategy, "MuonAdamW state sharded over the ranks", override=True)
    StrategyRegistry.register("ddp", WatchedDDPStrategy, "everything replicated on every rank", override=True)
    STRATEGY_REGISTRY.register("zero", FabricZeroStrategy, "MuonAdamW state sharded over the ranks", override=True)


def broadcast_module(module: nn.Module) -> None:
    """Broadcast the parameters and buffers of rank 0."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.numel():
            dist.broadcast(tensor.data, src=0)


def shard_optimizer(optimizer: Any) -> None:
    """Shard an optimizer's state over the ranks of the process group; UserError if it has no `shard` method."""
    optimizer = unwrapped(optimizer)
    if not hasattr(optimizer, "shard"):
        name = type(optimizer).__name__
        raise UserError(f"strategy zero cannot shard the state of {name}, which has no method shard; use strategy ddp")
    optimizer.shard(dist.get_rank(), dist.get_world_size())
