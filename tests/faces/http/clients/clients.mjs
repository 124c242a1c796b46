// OpenAI's client for Node, and Vercel's AI SDK.
import assert from "node:assert";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, streamText } from "ai";

const ANSWER = "OpenVINO is an open source toolkit for running AI models fast on Intel CPUs, GPUs and NPUs.";
const [baseURL, apiKey] = [`${process.env.SERVED}/v1`, process.env.KEY];
const messages = [{ role: "user", content: "What is OpenVINO?" }];

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const whole = await client.chat.completions.create({ model: "tiny/chat", messages });
assert.equal(whole.choices[0].message.content, ANSWER);
let text = "";
for await (const chunk of await client.chat.completions.create({ model: "tiny/chat", messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, ANSWER);
assert.equal((await client.responses.create({ model: "tiny/chat", input: "What is OpenVINO?" })).output_text, ANSWER);
assert.equal((await client.embeddings.create({ model: "tiny/embeddings", input: "one" })).data[0].embedding.length, 64);
await assert.rejects(client.chat.completions.create({ model: "no/such", messages }), /ovms-plugin pull no\/such/);

const served = createOpenAICompatible({ name: "ovms", baseURL, apiKey });
assert.equal((await generateText({ model: served("tiny/chat"), prompt: "What is OpenVINO?" })).text, ANSWER);
text = "";
for await (const part of streamText({ model: served("tiny/chat"), prompt: "What is OpenVINO?" }).textStream) text += part;
assert.equal(text, ANSWER);
const vector = await embed({ model: served.textEmbeddingModel("tiny/embeddings"), value: "one" });
assert.equal(vector.embedding.length, 64);
