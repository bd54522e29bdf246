"""LiteLLM: what the test asks of every client, printed as JSON."""

import json
import sys

import litellm

url, schema, tool = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
server = {"model": "hosted_vllm/tiny", "api_base": url, "api_key": "secret", "num_retries": 0}
messages = [{"role": "user", "content": "hello"}]
greedy = {**server, "messages": messages, "temperature": 0, "max_tokens": 20}
free = {**server, "messages": messages, "temperature": 1, "seed": 1, "max_tokens": 300}

chat = litellm.completion(**greedy).choices[0].message.content
stream = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**greedy, stream=True))

form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema, "strict": True}}
answer = litellm.completion(**free, response_format=form).choices[0].message.content

message = litellm.completion(**free, tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0].message
(call,) = message.tool_calls
result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
after = litellm.completion(**{**greedy, "messages": [*messages, message, result]}, tools=[tool])
chunks = list(litellm.completion(**free, tools=[tool], tool_choice="required", parallel_tool_calls=False, stream=True))
(streamed,) = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message.tool_calls
print(
    json.dumps(
        {
            "chat": chat,
            "stream": stream,
            "json": json.loads(answer),
            "call": [call.function.name, json.loads(call.function.arguments)],
            "streamed_call": [streamed.function.name, json.loads(streamed.function.arguments)],
            "after": after.choices[0].message.content,
        }
    )
)
