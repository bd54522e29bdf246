// One run of bench.py llama on llama.cpp: node bench_llama.mjs JOB, where JOB is JSON; prints tokens/s as JSON.
import {getLlama} from "node-llama-cpp";

const job = JSON.parse(process.argv[2]);
const llama = await getLlama({build: "never", gpu: false, progressLogs: false, logLevel: "error", maxThreads: job.threads});
const model = await llama.loadModel({modelPath: job.model});
const context = await model.createContext({
  contextSize: job.prompt + job.new + 8, batchSize: job.prompt, sequences: 1, threads: job.threads,
});
const sequence = context.getSequence();
let found;
for (let repeat = 0; repeat < 2; repeat++) {  // the first warms up
  await sequence.clearHistory();
  const prompt = Array.from({length: job.prompt}, (_, place) => 300 + (place * 7919 + repeat) % (job.vocabulary - 300));
  const start = performance.now();
  let first, count = 0;
  for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    if (first === undefined) first = performance.now();
    if (++count >= job.new) break;
  }
  const end = performance.now();
  found = {prompt: 1e3 * job.prompt / (first - start), decode: 1e3 * (count - 1) / (end - first)};
}
console.log(JSON.stringify(found));
process.exit(0);
