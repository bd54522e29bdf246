"""Activation checkpointing: the same gradients from less memory."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from nanochat_lit.model import attention


def batch(model, rows=4):
    tokens = torch.randint(model.config.vocab_size, (rows, model.config.sequence_len + 1))
    return tokens[:, :-1], tokens[:, 1:]


def kept_bytes(model, inputs, targets):
    """Storage, other than parameters, that the forward pass keeps for the backward pass; gradients are left behind."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(inputs, targets)
    total = sum(kept.values())
    loss.backward()
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_and_less_is_kept(dtype, random_model):
    plain = random_model(n_layer=6, sequence_len=64).train().set_compute_dtype(dtype)
    lean = copy.deepcopy(plain)
    lean.activation_checkpointing = True
    inputs, targets = batch(plain)
    kept, kept_lean = kept_bytes(plain, inputs, targets), kept_bytes(lean, inputs, targets)
    assert kept_lean < 0.4 * kept
    for (name, one), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("device_attention", ["blocked", "sdpa"])
def test_selective_checkpointing_repeats_no_matmul(device_attention, random_model, monkeypatch):
    """The gradients are the same bits, from the same floating-point operations of matmuls; true needs a third more."""
    monkeypatch.setattr(attention, "choose_attention", lambda *_, **__: device_attention)
    model = random_model(n_layer=4, window_pattern="L").train()
    inputs, targets = batch(model)
    gradients, flops = {}, {}
    for mode in (False, "selective", True):
        model.activation_checkpointing = mode
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model(inputs, targets).backward()
        gradients[mode] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        flops[mode] = counter.get_total_flops()
    assert torch.equal(gradients["selective"], gradients[False])
    assert flops["selective"] == flops[False] < 0.9 * flops[True]


def test_evaluation_and_decoding_do_not_use_it(random_model, monkeypatch):
    from nanochat_lit.model import gpt

    def refuse(*args, **kwargs):
        raise AssertionError("checkpointing without a backward pass")

    model = random_model()
    model.activation_checkpointing = True
    monkeypatch.setattr(gpt, "checkpointed", refuse)
    with torch.no_grad():
        model(*batch(model))
    with pytest.raises(AssertionError, match="without a backward"):
        model(*batch(model))  # the check itself
