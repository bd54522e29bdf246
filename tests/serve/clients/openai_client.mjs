// OpenAI's client for JavaScript: what the test asks of every client, printed as JSON.
import OpenAI from "openai";

const [url, schema, tool] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])];
const client = new OpenAI({ baseURL: url, apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const greedy = { model: "tiny", messages, temperature: 0, max_tokens: 20 };
const free = { model: "tiny", messages, temperature: 1, seed: 1, max_tokens: 300 };
const calling = { ...free, tools: [tool], tool_choice: "required", parallel_tool_calls: false };

const chat = (await client.chat.completions.create(greedy)).choices[0].message.content;
let stream = "";
for await (const chunk of await client.chat.completions.create({ ...greedy, stream: true })) {
  stream += chunk.choices[0].delta.content ?? "";
}
const response_format = { type: "json_schema", json_schema: { name: "trip", schema, strict: true } };
const answer = (await client.chat.completions.create({ ...free, response_format })).choices[0].message.content;

const message = (await client.chat.completions.create(calling)).choices[0].message;
const [call] = message.tool_calls;
const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
const after = await client.chat.completions.create({ ...greedy, messages: [...messages, message, result], tools: [tool] });
const events = client.chat.completions.stream(calling);
const [streamed] = (await events.finalChatCompletion()).choices[0].message.tool_calls;
console.log(
  JSON.stringify({
    chat,
    stream,
    json: JSON.parse(answer),
    call: [call.function.name, JSON.parse(call.function.arguments)],
    streamed_call: [streamed.function.name, JSON.parse(streamed.function.arguments)],
    after: after.choices[0].message.content,
  }),
);
