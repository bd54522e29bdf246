"""LiteLLM: what the test asks of every client, printed as JSON."""

import json

import litellm
from report import SCHEMA, TOOL, URL, parsed, report

server = {"model": "hosted_vllm/tiny", "api_base": URL, "api_key": "secret", "num_retries": 0}
messages = [{"role": "user", "content": "hello"}]
greedy = {**server, "messages": messages, "temperature": 0, "max_tokens": 20}
free = {**server, "messages": messages, "temperature": 1, "seed": 1, "max_tokens": 300}

chat = litellm.completion(**greedy).choices[0].message.content
stream = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**greedy, stream=True))

form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
answer = litellm.completion(**free, response_format=form).choices[0].message.content

message = litellm.completion(**free, tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0].message
(call,) = message.tool_calls
result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
after = litellm.completion(**{**greedy, "messages": [*messages, message, result]}, tools=[TOOL])
chunks = list(litellm.completion(**free, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True))
(streamed,) = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message.tool_calls
report(chat, stream, json.loads(answer), parsed(call), parsed(streamed), after.choices[0].message.content)
