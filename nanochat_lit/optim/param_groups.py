"""Parameter groups and constants of nanochat's optimizer."""

from typing import Any

from nanochat_lit.model.gpt import GPT

ADAMW_EPS = 1e-10

UNEMBEDDING_LR = 0.008
EMBEDDING_LR = 0.3
MATRIX_LR = 0.02
SCALAR_LR = 0.5
WEIGHT_DECAY = 0.28
"""Learning rates tuned at depth 12 with batches of 2^19 tokens."""

REFERENCE_WIDTH = 768
"""Width at which the AdamW learning rates of the embeddings were tuned; they scale with (n_embd / 768) ** -0.5."""


def param_groups(
    model: GPT,
    *,
    unembedding_lr: float = UNEMBEDDING_LR,
    embedding_lr: float = EMBEDDING_LR,
    matrix_lr: float = MATRIX_LR,
    scalar_lr: float = SCALAR_LR,
    weight_decay: float = WEIGHT_DECAY,
) -> list[dict[str, Any]]:
    """Return parameter groups for `MuonAdamW`, each with `name`, `kind` and hyper-parameters.

    Args:
        model: Model whose parameters are grouped.
        unembedding_lr: AdamW learning rate of lm_head at width 768.
        embedding_lr: AdamW learning rate of the token embedding at width 768; value and bigram embeddings use half.
        matrix_lr: Muon learning rate of the blocks' matrices.
        scalar_lr: AdamW learning rate of x0_lambdas; resid_lambdas use 1% of it.
        weight_decay: Weight decay of the Muon groups; the AdamW groups have fixed values.
    """
    scale = (model.config.n_embd / REFERENCE_WIDTH) ** -0.5
    parameters = dict(model.named_parameters())

    def named(*names: str) -> list[Any]:
        """Those of these names, or in modules of these names; an architecture need not have them."""
        return [own for name in names for key, own in parameters.items() if f"{key}.".startswith(f"{name}.")]

    groups = [
        _adamw("lm_head", named("lm_head"), unembedding_lr * scale, (0.8, 0.96), 0.01),
        _adamw("wte", named("transformer.wte"), embedding_lr * scale, (0.8, 0.995), 0.001),
        _adamw("value_embeds", named("value_embeds"), 0.5 * embedding_lr * scale, (0.8, 0.995), 0.01),
        _adamw("resid_lambdas", named("resid_lambdas"), 0.01 * scalar_lr, (0.8, 0.95), 0.05),
        _adamw("x0_lambdas", named("x0_lambdas"), scalar_lr, (0.96, 0.95), 0.0),
        _adamw("smear", named("smear_lambda", "backout_lambda", "smear_gate"), 0.2, (0.8, 0.95), 0.0),
        _adamw("bigram", named("bigram"), 0.5 * embedding_lr * scale, (0.8, 0.995), 0.01),
    ]
    groups = [group for group in groups if group["params"]]
    matrices = [parameter for block in model.blocks for parameter in block.parameters() if parameter.ndim == 2]
    grouped = {
        id(parameter) for parameters in [matrices, *(group["params"] for group in groups)] for parameter in parameters
    }
    if added := [
        parameter for parameter in model.parameters() if id(parameter) not in grouped
    ]:  # additional parameters of a variant
        groups.append(_adamw("added", added, 0.01 * scalar_lr, (0.8, 0.95), 0.0))
    muon = [
        {
            "name": "muon_" + "x".join(map(str, shape)),
            "kind": "muon",
            "params": [matrix for matrix in matrices if tuple(matrix.shape) == shape],
            "lr": matrix_lr,
            "momentum": 0.95,
            "beta2": 0.9,
            "weight_decay": weight_decay,
        }
        for shape in sorted({tuple(matrix.shape) for matrix in matrices})
    ]
    return groups + muon


def adapter_groups(model: GPT, lora_lr: float) -> list[dict[str, Any]]:
    """Return the parameter group of a model of which only a LoRA adapter is trained.

    Args:
        model: Model after `add_lora`.
        lora_lr: AdamW learning rate.
    """
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [_adamw("lora", factors, lora_lr, (0.9, 0.95), 0.0)]


def _adamw(name: str, params: list[Any], lr: float, betas: tuple[float, float], weight_decay: float) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "adamw",
        "params": params,
        "lr": lr,
        "betas": betas,
        "eps": ADAMW_EPS,
        "weight_decay": weight_decay,
    }
