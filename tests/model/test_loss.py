"""The chunked loss against the plain formula."""

import pytest
import torch
import torch.nn.functional as F

from nanochat_lit.model import loss as loss_module
from nanochat_lit.model.loss import IGNORE_INDEX, softcapped_cross_entropy
from nanochat_lit.model.loss_kernel import has_loss_kernel, loss_and_gradient_in_place

WITHOUT_CAP = {"kernel": loss_module.softmax_without_cap, "is_capped": False}


def plain(hidden, weight, targets, reduction="mean", is_capped=True):
    logits = (hidden @ weight.T).float()
    logits = 15 * torch.tanh(logits / 15) if is_capped else logits
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    losses = losses.view(targets.shape)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (targets != IGNORE_INDEX).sum()


@pytest.fixture(params=["C++", "torch"], autouse=True)
def form(request, monkeypatch):
    """The C++ kernel, which a CPU takes where there is a compiler, and the form of everything else."""
    if request.param == "torch":
        monkeypatch.setattr(loss_module, "has_loss_kernel", lambda _: False)
    elif not has_loss_kernel(torch.empty(1)):
        pytest.skip("no C++ compiler found")
    return request.param


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 70, 24, generator=generator, requires_grad=True)
    weight = (torch.randn(501, 24, generator=generator) * 0.7).requires_grad_()  # logits well into the softcap
    targets = torch.randint(0, 501, (3, 70), generator=generator)
    targets[0, :40] = IGNORE_INDEX
    return hidden, weight, targets


@pytest.fixture
def chunks_of(monkeypatch):
    """Makes chunks as small as a test wants them."""

    def choose(elements):
        monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(loss_module, "CHUNK_ROWS", 1)
        monkeypatch.setattr(loss_module, "CHUNK_SHARE", 1 << 30)

    return choose


@pytest.mark.parametrize("chunk_elements", [1, 501 * 13, 501 * 64, 1 << 22])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("is_capped", [True, False])
def test_equals_the_plain_formula(case, chunks_of, chunk_elements, reduction, is_capped):
    chunks_of(chunk_elements)
    hidden, weight, targets = case
    ours = softcapped_cross_entropy(hidden, weight, targets, reduction, **({} if is_capped else WITHOUT_CAP))
    expected = plain(hidden, weight, targets, reduction, is_capped)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    factor = torch.linspace(1, 2, expected.numel()).view(expected.shape)
    gradients = torch.autograd.grad((ours * factor).sum(), (hidden, weight))
    for mine, theirs in zip(gradients, torch.autograd.grad((expected * factor).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)


def test_no_target_at_all_gives_zero_not_nan(case):
    hidden, weight, targets = case
    loss = softcapped_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.abs().max() == 0.0
    assert weight.grad.abs().max() == 0.0


def test_without_gradients_the_value_is_the_same(case):
    hidden, weight, targets = case
    with torch.no_grad():
        value = softcapped_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(value, softcapped_cross_entropy(hidden, weight, targets).detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("is_training", [True, False])
def test_losses_of_tokens_come_with_the_sum(case, monkeypatch, is_training):
    """In several chunks, with rows that do not count left out or in; the sum learns as ever, the losses have no gradient."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 501 * 13)
    hidden, weight, targets = case
    with torch.set_grad_enabled(is_training):
        total, losses = loss_module.total_and_token_losses(hidden, weight, targets)
    torch.testing.assert_close(losses, plain(hidden, weight, targets, "none").detach(), atol=1e-5, rtol=1e-5)
    assert losses[0, :40].count_nonzero() == 0
    assert not losses.requires_grad
    torch.testing.assert_close(total.detach(), losses.sum())
    if is_training:
        found = torch.autograd.grad(total, (hidden, weight))
        expected = torch.autograd.grad(softcapped_cross_entropy(hidden, weight, targets, "sum"), (hidden, weight))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_bfloat16_gradients_are_close_to_float32(case):
    hidden, weight, targets = case
    exact = torch.autograd.grad(softcapped_cross_entropy(hidden, weight, targets), (hidden, weight))
    low = hidden.detach().bfloat16().requires_grad_()
    rough = torch.autograd.grad(softcapped_cross_entropy(low, weight, targets), (low, weight))
    for mine, theirs in zip(rough, exact, strict=True):
        assert (mine.float() - theirs).norm() < 0.02 * theirs.norm()


def test_float16_keeps_the_gradients_of_improbable_tokens():
    """A probability of 1e-9 is below float16's smallest number; on the way to the float32 gradients it must not be lost."""
    hidden = torch.full((1, 16, 8), 0.5).half().requires_grad_()
    weight = torch.linspace(-4.0, 3.0, 64)[:, None].repeat(1, 8).half().float().requires_grad_()
    targets = torch.full((1, 16), 63)
    loss = softcapped_cross_entropy(hidden, weight, targets, "sum")
    found = torch.autograd.grad(loss, weight)[0]
    exact_hidden, exact_weight = hidden.detach().double(), weight.detach().double().requires_grad_()
    logits = 15 * torch.tanh(exact_hidden @ exact_weight.T / 15)
    exact = F.cross_entropy(logits[0], targets[0], reduction="sum")
    wanted = torch.autograd.grad(exact, exact_weight)[0]
    torch.testing.assert_close(loss.double(), exact, rtol=1e-3, atol=1e-3)
    improbable = (wanted > 1e-7) & (wanted < 1e-5)
    assert improbable.any()
    torch.testing.assert_close(found[improbable].double(), wanted[improbable], rtol=0.3, atol=1e-8)


def test_chunks_never_hold_all_logits(case, chunks_of, monkeypatch):
    seen = []

    def spy(logits, *arguments):
        seen.append(logits.numel())
        return chunk_loss_and_gradient(logits, *arguments)

    chunk_loss_and_gradient = loss_module.chunk_loss_and_gradient
    monkeypatch.setattr(loss_module, "chunk_loss_and_gradient", spy)
    chunks_of(501 * 16)
    hidden, weight, targets = case
    softcapped_cross_entropy(hidden, weight, targets)
    assert len(seen) > 10
    assert max(seen) <= 501 * 16


@pytest.mark.parametrize("vocab_size", [7, 16, 2048, 501])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_capped", [True, False])
def test_chunks_of_any_width_and_size_of_logit(vocab_size, dtype, is_capped):
    """Logits far beyond the softcap too; against float64, where tanh saturates later. All of them may be far below 0."""
    logits = (torch.randn(33, vocab_size) * 40).to(dtype) - (0 if is_capped else 400)
    targets = torch.randint(-1, vocab_size, (33,))
    exact = logits.double().requires_grad_()
    capped = 15 * torch.tanh(exact / 15) if is_capped else exact
    wanted = F.cross_entropy(capped, targets, ignore_index=-1, reduction="sum")
    wanted.backward()
    kernel = loss_module.softmax_and_slope if is_capped else loss_module.softmax_without_cap
    loss, gradient = loss_module.chunk_loss_and_gradient(logits.clone(), targets, kernel, is_capped)
    assert loss.sum().item() == pytest.approx(wanted.item(), rel=1e-5)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5 if is_capped else 6e-5  # 3e-5 is the spacing at 400
    torch.testing.assert_close(gradient.double(), exact.grad, atol=1e-6 if is_capped else 6e-5, rtol=tolerance)


def test_a_logit_that_is_no_number_is_seen():
    logits = torch.zeros(2, 40)
    logits[1, 17] = float("nan")
    loss, _ = loss_module.chunk_loss_and_gradient(logits, torch.tensor([3, 4]), loss_module.softmax_and_slope)
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize("wrong", [40, -2])
def test_a_target_that_is_no_column_is_refused(wrong):
    """Reading it would be reading, and writing, whatever lies beside the row."""
    with pytest.raises(IndexError, match=f"target {wrong} is neither -1 .ignored. nor one of the 40 logits"):
        loss_and_gradient_in_place(torch.zeros(2, 40), torch.tensor([3, wrong]))


def test_targets_of_any_integer_type():
    logits, targets = torch.randn(5, 40), torch.tensor([3, -1, 0, 39, 7])
    losses = {
        kind: loss_and_gradient_in_place(logits.clone(), targets.to(kind))
        for kind in (torch.int64, torch.int32, torch.int16)
    }
    assert losses[torch.int64].count_nonzero() == 4
    assert all(torch.equal(own, losses[torch.int64]) for own in losses.values())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_their_gradients(temperature, chunks_of):
    """Against log_softmax of all logits at once, with the rows in several chunks."""
    chunks_of(150)
    hidden, weight = torch.randn(2, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets, factors = torch.randint(0, 50, (2, 7)), torch.randn(2, 7)
    targets[0, 3] = -1
    logprobs, entropies = loss_module.token_logprobs(
        hidden, lambda rows: loss_module.softcap(rows @ weight.T), targets, len(weight), temperature
    )
    found = torch.autograd.grad((logprobs * factors).sum(), [hidden, weight])
    plain = torch.log_softmax(loss_module.softcap(hidden @ weight.T) / temperature, dim=-1)
    wanted = plain.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (targets != -1)
    torch.testing.assert_close(logprobs, wanted)
    torch.testing.assert_close(found, torch.autograd.grad((wanted * factors).sum(), [hidden, weight]))
    exact = torch.distributions.Categorical(logits=plain.detach()).entropy() * (targets != -1)
    torch.testing.assert_close(entropies, exact)
    assert not entropies.requires_grad


def test_chunks_have_rows_enough_for_the_gradient_that_each_adds():
    assert loss_module.rows_per_chunk(4096, 32768) == 1024
    assert loss_module.rows_per_chunk(4096, 2048) == 2048
    assert loss_module.rows_per_chunk(65536, 32768) == 4096
    assert loss_module.rows_per_chunk(1025, 32768) == 513  # equal chunks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1, 15, 16, 33, 4099])
def test_gradients_are_added(dtype, size):
    sums, added = torch.randn(size), torch.randn(size).to(dtype)
    wanted = sums + added.float()
    loss_module.add_in_place(sums, added)
    assert torch.equal(sums, wanted)


def test_an_evaluation_on_a_cpu_takes_chunks_of_memory_that_is_kept(monkeypatch):
    """Logits of 32 MiB and more would be returned to the system after each chunk, and cleared when they are taken again."""
    made, vocab_size = [], 8192

    def noted(logits, targets, _is_capped):
        made.append(logits.nbytes)
        return torch.zeros(len(logits))

    monkeypatch.setattr(loss_module, "chunk_losses", noted)
    with torch.inference_mode():
        softcapped_cross_entropy(
            torch.zeros(1, 2048, 8), torch.zeros(vocab_size, 8), torch.zeros(1, 2048).long(), "none"
        )
    assert sum(made) == 2048 * vocab_size * 4
    assert max(made) <= 16 << 20


@pytest.mark.parametrize("is_capped", [True, False])
def test_sampled_softmax_is_the_formula_with_weights(case, form, is_capped):
    hidden, weight, targets = case
    options = {} if is_capped else WITHOUT_CAP
    loss = softcapped_cross_entropy(hidden, weight, targets, num_sampled=150, **options)
    found = torch.autograd.grad(loss, (hidden, weight))
    chosen, places, factors = loss_module.sampled_vocabulary(targets.flatten(), 501, 150)
    own = targets[targets != IGNORE_INDEX].unique()
    assert chosen[: len(own)].tolist() == own.tolist()
    assert len(chosen.unique()) == len(own) + 150
    assert factors.sum() == pytest.approx(501)
    logits = hidden.flatten(0, 1) @ weight.T
    logits = 15 * torch.tanh(logits / 15) if is_capped else logits
    shifted = (logits[:, chosen] + factors.log())[places >= 0]
    sampled = F.cross_entropy(shifted, places[places >= 0])
    expected = sampled if form == "C++" else plain(hidden, weight, targets, is_capped=is_capped)  # elsewhere all tokens
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_sampled_sums_are_those_of_all_tokens_in_the_mean():
    """Over 400 batches of the same targets in another order."""
    exponentials = torch.rand(300, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(20)
    estimates = []
    for number in range(400):  # the sample depends on the sum of the targets
        chosen, _, factors = loss_module.sampled_vocabulary(torch.cat((targets, torch.full((number,), 19))), 300, 40)
        estimates.append(float((exponentials[chosen] * factors).sum() / exponentials.sum()))
    assert sum(estimates) / 400 == pytest.approx(1.0, abs=0.02)
    assert len(set(estimates)) == 400
