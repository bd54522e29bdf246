"""The loop without a Trainer against the same steps by hand; what the Trainer does is compared in tests/equivalence."""

import torch

from nanochat_lit.optim import MuonAdamW, Schedule, param_groups, train_in_a_loop

RATES = {"embedding_lr": 1.0, "unembedding_lr": 0.04, "matrix_lr": 0.05, "weight_decay": 0.1}


def test_it_is_the_steps_by_hand(random_model):
    schedule = Schedule(num_steps=4, warmup=2, momentum_warmup=3)
    rows = torch.randint(0, 320, (4, 2, 17), generator=torch.Generator().manual_seed(1))
    batches = [{"inputs": row[:, :-1], "targets": row[:, 1:]} for row in rows]
    model, twin = random_model(), random_model()
    losses = train_in_a_loop(model, [*batches, *batches], schedule, **RATES)  # more batches than steps
    optimizer = MuonAdamW(param_groups(twin, **RATES))
    expected = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule.lr_multiplier(step)
            if group["kind"] == "muon":
                group["momentum"] = schedule.muon_momentum(step)
                group["weight_decay"] = 0.1 * schedule.weight_decay_multiplier(step)
        loss = twin(batch["inputs"], batch["targets"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
