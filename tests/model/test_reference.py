"""Logits, losses and optimizer steps of the architecture that this project re-implements, recorded elsewhere."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from nanochat_lit import GPT, GPTConfig, MuonAdamW, param_groups

CASES = ("tiny", "gqa")


@pytest.fixture(params=CASES)
def case(request, reference):
    return reference / "nanochat" / request.param


@pytest.fixture(params=CASES)
def steps_case(request, reference):
    """With optimizer steps; those of the first model are too large for a repository and lie with the real data."""
    if (reference / "nanochat" / request.param / "optimizer.safetensors").exists():
        return reference / "nanochat" / request.param
    return request.getfixturevalue("shared") / "reference" / "nanochat" / request.param


def load(case):
    model = GPT(GPTConfig(**json.loads((case / "config.json").read_text())))
    model.init_weights()
    model.load_state_dict(load_file(case / "weights.safetensors"))
    return model


def test_logits_and_losses_equal_the_reference(case):
    model, expected = load(case), load_file(case / "forward.safetensors")
    inputs, targets = expected["inputs"], expected["targets"]
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), expected["logits"], atol=1e-4, rtol=0)
        per_token = model(inputs, targets, reduction="none")
    torch.testing.assert_close(per_token, expected["loss_per_token"], atol=1e-5, rtol=0)
    loss = model(inputs, targets)  # with gradients: the chunked form
    torch.testing.assert_close(loss, expected["loss"].squeeze(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("constant", ["QK_SCALE", "VALUE_GATE_SCALE"])
def test_the_comparison_notices_a_changed_constant(case, monkeypatch, constant):
    from nanochat_lit.model import transformer

    monkeypatch.setattr(transformer, constant, 1.01 * getattr(transformer, constant))
    model, expected = load(case), load_file(case / "forward.safetensors")
    with torch.no_grad():
        assert (model(expected["inputs"]) - expected["logits"]).abs().max() > 1e-4


def step_through(case, model):
    """Three recorded steps; returns the largest relative error of any parameter after each."""
    recorded = load_file(case / "optimizer.safetensors")
    groups = param_groups(
        model, unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, scalar_lr=0.5, weight_decay=0.1
    )
    optimizer = MuonAdamW(groups)
    errors = []
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = recorded[f"grad{step}/{name}"].clone()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - 0.25 * step)
            if group["kind"] == "muon":
                group["momentum"] = 0.85 + 0.04 * step
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        worst, num_flipped = 0.0, 0
        for name, parameter in model.named_parameters():
            expected = recorded[f"param{step}/{name}"]
            # cautious decay asks for the sign of the step: where that is rounding noise, either answer is right
            off = (parameter.detach() - expected).abs() > 1e-4 * expected.abs().max()
            flipped = off & ((expected - before[name]).abs().minimum((parameter - before[name]).abs()) < 1e-7)
            parameter.data = torch.where(flipped, expected, parameter)
            num_flipped += int(flipped.sum())
            worst = max(worst, float((parameter.detach() - expected).abs().max() / expected.abs().max()))
        errors.append(worst if num_flipped <= 2 else math.inf)
    return errors


def test_three_optimizer_steps_equal_the_reference(steps_case):
    assert max(step_through(steps_case, load(steps_case))) < 1e-4


@pytest.mark.parametrize(("name", "value"), [("ADAMW_EPS", 1e-3), ("REFERENCE_WIDTH", 800)])
def test_the_optimizer_comparison_notices_a_changed_constant(steps_case, monkeypatch, name, value):
    from nanochat_lit.optim import param_groups as module

    monkeypatch.setitem(module.__globals__, name, value)
    assert max(step_through(steps_case, load(steps_case))) > 1e-4


def test_the_optimizer_comparison_notices_changed_polar_coefficients(steps_case, monkeypatch):
    from nanochat_lit.optim import polar

    (a, b, c), *rest = polar.POLAR_EXPRESS_COEFFICIENTS
    monkeypatch.setattr(polar, "POLAR_EXPRESS_COEFFICIENTS", ((a, b * 1.01, c), *rest))
    assert max(step_through(steps_case, load(steps_case))) > 1e-4


def test_recorded_groups_are_ours(case):
    model = load(case)
    groups = param_groups(
        model, unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, scalar_lr=0.5, weight_decay=0.1
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    ours = {tuple(sorted(names[p] for p in group["params"])): group for group in groups}
    recorded = json.loads((case / "optimizer.json").read_text())["groups"]
    assert {tuple(sorted(group["params"])) for group in recorded} == set(ours)
    for group in recorded:
        mine = ours[tuple(sorted(group["params"]))]
        assert mine["kind"] == group["kind"]
        assert mine["lr"] == pytest.approx(group["lr"], rel=1e-12)
        assert mine["weight_decay"] == pytest.approx(group["weight_decay"], rel=1e-12)
        if group["kind"] == "adamw":
            assert mine["betas"] == tuple(group["betas"])
            assert mine["eps"] == group["eps"]
        else:
            assert mine["beta2"] == group["beta2"]
