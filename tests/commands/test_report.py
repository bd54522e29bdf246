"""`report` on toy runs: what the folder has is on the page, what it lacks is said."""

import csv
import json
import shutil
from html import unescape

import pytest

from nanochat_lit import cli
from nanochat_lit.report.run_folder import read_run
from nanochat_lit.training.checkpoint_files import flatten

SESSION = {
    "command": ["nanochat-lit", "fit", "--config", "a b.yaml"],
    "started_at": "2026-01-01T00:00:00+00:00",
    "ended_at": "2026-01-01T01:30:00+00:00",
    "end": "finished",
    "first_step": 0,
    "last_step": 4,
    "world_size": 2,
    "machine": {"processor": "<b>fast</b>"},
}


@pytest.fixture
def run(pretrained, tmp_path):
    folder = tmp_path / "first"
    shutil.copytree(pretrained, folder)
    return folder


def page(folder):
    return unescape((folder / "report.html").read_text("utf-8"))


def test_a_run_as_it_was_left(run, capsys):
    (run / "samples.md").write_text(
        "\n## Step 2\n\n- **a** <script>b</script>\n\n## Step 3\n\n- c\n\n## Step 4\n\n- d\n"
    )
    examination = {"accuracy": 0.5, "categories": {"sums": {"accuracy": 0.5, "correct": 5, "count": 10}}}
    (run / "export_evaluation").mkdir()
    (run / "export_evaluation" / "tiny_world.json").write_text(json.dumps(examination))
    (run / "export_evaluation" / "core.json").write_text('{"metric": 3}')
    assert cli.main(["report", str(run), "--price_per_hour", "36"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "report" / f"report.{form}") for form in ("html", "md")]
    html, markdown = page(run / "report"), (run / "report" / "report.md").read_text("utf-8")
    seconds = read_run(run).total()
    assert f"${seconds / 100:,.2f}" in html
    for text in ("Pretraining of a GPT of 2 layers", "nanochat-lit fit --config", "4 of 4", "finished", "torch 2."):
        assert text in html
        assert text in markdown
    assert "23.7% to 76.3%" in html  # 5 of 10, as tables of Wilson's interval have it
    assert "core.json is not in a supported format" in html
    assert "Step 2\n\na <script>b" in html
    assert "Step 4" in html
    assert "Step 3" not in html
    assert "<script>b" not in (run / "report" / "report.html").read_text("utf-8")
    raw = (run / "report" / "report.html").read_text("utf-8")
    assert raw.count("src=") == raw.count('src="data:image/png;base64,') == 4  # loss, bpb, rates, throughput


def test_sessions_are_kept_by_the_run(run):
    (session,) = read_run(run).sessions
    assert session["command"][:3] == ["nanochat-lit", "fit", "--config"]
    assert (session["first_step"], session["last_step"], session["end"]) == (0, 4, "finished")
    assert session["started_at"] <= session["ended_at"]
    assert {"processor", "system", "versions"} <= set(session["machine"])


def test_a_continued_run_has_two_sessions(run):
    options = ["--config", str(run / "config.yaml"), "--run_dir", str(run), "--trainer.max_steps", "6"]
    assert cli.main(["fit", *options, "--ckpt_path", "last"]) == 0
    first, second = read_run(run).sessions
    assert (first["last_step"], second["first_step"], second["last_step"]) == (4, 4, 6)
    assert second["command"] == ["nanochat-lit", "fit", *options, "--ckpt_path", "last"]


def test_several_runs_are_compared(run, capsys):
    other = run.with_name("second")
    shutil.copytree(run, other)
    config = (other / "config.yaml").read_text("utf-8")
    (other / "config.yaml").write_text(config.replace("warmup: 1\n", "warmup: 2\n", 1))
    (other / "sessions.json").write_text(json.dumps([SESSION]))
    out = run.parent / "both"
    assert cli.main(["report", str(run), str(other), "--out", str(out)]) == 0
    html = page(out)
    different = "".join(html.split("Settings that differ")[1].split("</table>")[0].split("\n"))
    assert "<td>model.warmup</td><td>1</td><td>2</td>" in different
    assert different.count("<tr>") == 2  # the heading and this one
    assert "1 h 30 min" in html
    assert "'a b.yaml'" in html
    assert "<td><b>fast" not in (out / "report.html").read_text("utf-8")
    assert "validation by compute" in html


def test_a_run_that_has_only_begun(run):
    for name in ("export", "checkpoints"):
        shutil.rmtree(run / name)
    for name in ("samples.md", "plan.json", "sessions.json"):
        (run / name).unlink(missing_ok=True)
    assert cli.main(["report", "--runs", json.dumps([str(run)])]) == 0
    html = page(run / "report")
    for text in ("has no export", "Not recorded.", "None.", "None. Results of"):
        assert text in html


def test_clock_of_several_sessions(tmp_path):
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "seconds", "tokens"])
        writer.writerows([[1, 10, 8], [2, 20, 16], [3, 5, 24], [4, 15, 32]])
    run = read_run(tmp_path)
    assert run.total() == 35
    assert run.curve("seconds", "tokens") == ([8, 16, 24, 32], [10, 20, 5, 15])


def test_flatten():
    assert flatten({"a": {"init_args": {"b": 1, "c": {}}}, "d": None}) == {"a.b": 1, "a.c": {}, "d": None}


@pytest.mark.parametrize(("words", "message"), [([], "runs"), (["nowhere"], "nowhere"), (["."], "neither")])
def test_mistakes(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *words]) == 2
    message = {"neither": "has no config.yaml and no metrics.csv"}.get(message, message)
    assert message in capsys.readouterr().err
