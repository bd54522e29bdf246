"""OpenAI's client: what the test asks of every client, printed as JSON."""

import json

import openai
from report import SCHEMA, TOOL, URL, parsed, report

client = openai.OpenAI(base_url=URL, api_key="secret", max_retries=0)
hello = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 20}
free = {**hello, "temperature": 1, "seed": 1, "max_tokens": 300}

chat = client.chat.completions.create(**hello).choices[0].message.content
stream = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**hello, stream=True))

form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
answer = client.chat.completions.create(**free, response_format=form).choices[0].message.content

message = client.chat.completions.create(**free, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
(call,) = message.choices[0].message.tool_calls
messages = [
    *hello["messages"],
    message.choices[0].message,
    {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
]
after = client.chat.completions.create(**{**hello, "messages": messages}, tools=[TOOL]).choices[0].message.content
with client.chat.completions.stream(**free, tools=[TOOL], tool_choice="required", parallel_tool_calls=False) as events:
    (streamed,) = events.get_final_completion().choices[0].message.tool_calls
report(chat, stream, json.loads(answer), parsed(call), parsed(streamed), after)
