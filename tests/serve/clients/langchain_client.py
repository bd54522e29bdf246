"""LangChain's ChatOpenAI: what the test asks of every client, printed as JSON."""

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from report import SCHEMA, TOOL, URL, report


def model(**fields):
    return ChatOpenAI(model="tiny", base_url=URL, api_key="secret", max_retries=0, **fields)


hello = [HumanMessage("hello")]
greedy, free = model(temperature=0, max_tokens=20), model(temperature=1, seed=1, max_tokens=300)
chat = greedy.invoke(hello).content
stream = "".join(chunk.content for chunk in greedy.stream(hello))
answer = free.with_structured_output({"title": "trip", **SCHEMA}, method="json_schema").invoke(hello)

calling = free.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
message = calling.invoke(hello)
(call,) = message.tool_calls
after = greedy.bind_tools([TOOL]).invoke([*hello, message, ToolMessage("sunny", tool_call_id=call["id"])]).content
whole = None
for chunk in calling.stream(hello):
    whole = chunk if whole is None else whole + chunk
(streamed,) = whole.tool_calls
report(chat, stream, answer, [call["name"], call["args"]], [streamed["name"], streamed["args"]], after)
