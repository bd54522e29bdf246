from nanochat_lit.common.recipes import explain_unrecognized

OPTIONS = ["--run_dir", "--config", "--model.depth", "--data.path", "--trainer.devices", "--overwrite"]


def explained(arguments: str) -> str:
    return explain_unrecognized(f"unrecognized arguments: {arguments}", OPTIONS)


def test_what_was_meant():
    assert explained("--run_dri x").endswith("did you mean --run_dir?")
    assert explained("--dat.path=x").endswith("did you mean --data.path?")
    assert explained("--depth 12").endswith("did you mean --model.depth?")
    assert explained("--model.dept 12").endswith("did you mean --model.depth?")
    assert explained("recipes/X.yaml").endswith("--config recipes/X.yaml")
    assert explained("word").endswith("--NAME VALUE")
    assert explain_unrecognized("unrecognized arguments: runs/x", ["--model", "--out"]).endswith("--model runs/x")
    assert explained("--nothing_like_it") == "unrecognized arguments: --nothing_like_it"
    assert explain_unrecognized("the following arguments are required: fit.data, fit.model", OPTIONS) == (
        "missing: --data, --model; a recipe has them: --config recipes/cpu_text.yaml"
    )
    assert explain_unrecognized("the following arguments are required: out", OPTIONS) == "missing: --out"
    assert explain_unrecognized("another message", OPTIONS) == "another message"
