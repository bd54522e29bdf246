// Runs a job of test_other_engines.py on llama.cpp: node llama_cpp.mjs JOB.json RESULT.json
import {readFileSync, writeFileSync} from "fs";
import {getLlama} from "node-llama-cpp";

const job = JSON.parse(readFileSync(process.argv[2]));
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: job.model});
const {bos, eos, shouldPrependBosToken} = model.tokens;
const ids = job.texts.map((text) => Array.from(model.tokenize(text, false)));
const result = {
  release: llama.llamaCppRelease.release,
  special: [bos, eos, shouldPrependBosToken],
  ids,
  texts: ids.map((tokens) => model.detokenize(tokens, true)),
  prompts: job.chats.map((text) => Array.from(model.tokenize(text, true))),
  greedy: [],
  probabilities: [],
};
const context = await model.createContext({
  contextSize: job.context, sequences: 1, threads: 2, flashAttention: false,
  experimentalKvCacheKeyType: job.cache, experimentalKvCacheValueType: job.cache,
});
const sequence = context.getSequence();
for (const prompt of job.starts) {
  await sequence.clearHistory();
  const tokens = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    tokens.push(token);
    if (tokens.length >= job.maxTokens) break;
  }
  result.greedy.push(tokens);
}
for (const tokens of job.scored) {
  await sequence.clearHistory();
  const seen = await sequence.controlledEvaluate(tokens.map((token) => [token, {generateNext: {probabilities: true}}]));
  result.probabilities.push(seen.map((place) => Array.from(place.next.probabilities.entries())));
}
writeFileSync(process.argv[3], JSON.stringify(result));
process.exit(0);
