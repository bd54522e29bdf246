"""nanochat-lit chat: talk to an export in the terminal. Keeps imports light to start quickly."""

import sys

from nanochat_lit.commands.terminal_chat import Screen, TerminalChat, note, note_cut
from nanochat_lit.common.errors import UserError
from nanochat_lit.engine.calculator import calculate
from nanochat_lit.engine.chat_session import ChatSession
from nanochat_lit.engine.engine import Engine
from nanochat_lit.engine.engine_chat import EngineChat
from nanochat_lit.engine.export import find_model, limits_of, load_export, load_generation_defaults, read_provenance
from nanochat_lit.engine.tool_use import Tool
from nanochat_lit.model.packed import Quantization, describe_kernel


def chat(  # noqa: PLR0913 - every option of the command is a parameter
    model: str,
    prompt: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: str | None = None,
    compute_dtype: str = "auto",
    quantize: Quantization | None = None,
    python_tool: bool = False,
) -> None:
    """Chat with a model in the terminal, or print one answer with -p.

    Args:
        model: Export, run folder, or .ckpt file.
        prompt: Print the answer to this message and exit; null starts an interactive conversation.
        temperature: Sampling temperature; 0 is greedy. null is the export's default.
        top_k: Sample from this many most likely tokens; 0 disables the limit. null is the export's default.
        top_p: Sample from the most likely tokens that together reach this probability; 1 disables the limit. null is 1.
        max_new_tokens: Maximum length of an answer, tokens; null is the export's default.
        seed: Sampling seed; the same seed gives the same answers to the same messages.
        device: cpu, cuda or mps; null selects the fastest available device.
        compute_dtype: auto, bfloat16, float16 or float32.
        quantize: int8 stores the weights in 8 bits (CPU only); null keeps them in compute_dtype.
        python_tool: Run Python code that the model writes in a sandbox, in addition to the calculator; an error if no
            sandbox is available.
    """
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    conversation = ChatSession(settings=load_generation_defaults(model).updated(given))
    if prompt is not None and not prompt.strip():
        raise UserError("the prompt is empty; write a message after -p, or omit -p for a conversation")
    tool = _tool(python_tool)
    gpt, tokenizer = load_export(model, device, compute_dtype, cast_weights=True, quantize=quantize)
    print(f"kernel: {describe_kernel(gpt)}", file=sys.stderr)
    limits = limits_of(read_provenance(find_model(model)))
    with EngineChat(Engine(gpt, tokenizer, num_slots=1, tool=tool)) as chat_model:
        if prompt is None:
            if limits:
                note(limits)
            TerminalChat(chat_model, conversation).run()
            return
        screen = Screen()
        screen.show(piece for piece in conversation.ask(chat_model, prompt) if piece.type == "text")
        screen.end()
        assert conversation.answer is not None
        note_cut(conversation.answer)
        if limits:
            note(limits)


def _tool(python_tool: bool) -> Tool:
    if not python_tool:
        return calculate
    from nanochat_lit.engine.python_tool import check_python_tool, run_tool

    check_python_tool()
    return run_tool
