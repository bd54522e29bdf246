// Vercel's AI SDK: what the test asks of every client, printed as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool as makeTool } from "ai";

const [url, schema, given] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])];
const provider = createOpenAICompatible({ name: "tiny", baseURL: url, apiKey: "secret", supportsStructuredOutputs: true });
const server = { model: provider("tiny"), maxRetries: 0 };
const messages = [{ role: "user", content: "hello" }];
const greedy = { ...server, messages, temperature: 0, maxOutputTokens: 20 };
const free = { ...server, messages, temperature: 1, seed: 1, maxOutputTokens: 300 };
const { name, description, parameters } = given.function;
const tools = { [name]: makeTool({ description, inputSchema: jsonSchema(parameters) }) };
const calling = { ...free, tools, toolChoice: { type: "tool", toolName: name } };

const chat = (await generateText(greedy)).text;
let stream = "";
for await (const part of streamText(greedy).textStream) stream += part;
const { output } = await generateText({ ...free, output: Output.object({ schema: jsonSchema(schema) }) });

const called = await generateText(calling);
const [call] = called.toolCalls;
const result = { type: "tool-result", toolCallId: call.toolCallId, toolName: name, output: { type: "text", value: "sunny" } };
const turns = [...messages, ...called.response.messages, { role: "tool", content: [result] }];
const after = (await generateText({ ...greedy, messages: turns, tools })).text;
const [streamed] = await streamText(calling).toolCalls;
console.log(
  JSON.stringify({
    chat,
    stream,
    json: output,
    call: [call.toolName, call.input],
    streamed_call: [streamed.toolName, streamed.input],
    after,
  }),
);
