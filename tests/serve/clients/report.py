"""What the Python programs of this folder share: their arguments, and the report that test_clients.py reads."""

import json
import sys

URL, SCHEMA, TOOL = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])


def report(chat, stream, answer, call, streamed_call, after):
    """Prints what the client received: texts, a parsed answer, and calls as [name, arguments]."""
    found = {
        "chat": chat,
        "stream": stream,
        "json": answer,
        "call": call,
        "streamed_call": streamed_call,
        "after": after,
    }
    print(json.dumps(found))


def parsed(call):
    """A call of OpenAI's form as [name, arguments]."""
    return [call.function.name, json.loads(call.function.arguments)]
