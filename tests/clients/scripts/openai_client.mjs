// OpenAI's own client for node: files, stores, chat whole and streamed, a tool, embeddings, models, what is stored.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({
  baseURL: `${process.env.STRONGROOM_URL}/v1`,
  apiKey: process.env.STRONGROOM_KEY,
  maxRetries: 0,
});
const messages = [{ role: "user", content: "Who is the harbour master?" }];
const ring = {
  type: "function",
  function: { name: "ring", parameters: { type: "object", properties: { who: { type: "string" } } } },
};

const store = await client.vectorStores.create({ name: "from node" });
const file = await toFile(Buffer.from("The lamp of the pier is green."), "pier.txt");
const attached = await client.vectorStores.files.uploadAndPoll(store.id, file, { pollIntervalMs: 50 });
const found = await client.vectorStores.search(store.id, { query: "lamp of the pier" });

const whole = await client.chat.completions.create({ model: "rag/harbour", messages, store: true });
const stream = client.chat.completions.stream({ model: "rag/harbour", messages });
let streamed = "";
stream.on("content", (delta) => (streamed += delta));
const final = await stream.finalChatCompletion();
const called = await client.chat.completions.create({
  model: "rag/harbour",
  messages: [{ role: "user", content: "Ring up the harbour master" }],
  tools: [ring],
});
const embedded = await client.embeddings.create({ model: "all-MiniLM-L6-v2", input: ["a key", "a hall"] });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const stored = [];
for await (const each of client.chat.completions.list()) stored.push(each.id);

let refused = null;
try {
  await client.chat.completions.create({ model: "rag/harbour", messages, n: 0 });
} catch (error) {
  refused = [error.status, error.param];
}
console.log(
  JSON.stringify({
    attached: attached.status,
    found: found.data[0].content[0].text,
    whole: whole.choices[0].message.content,
    annotations: whole.choices[0].message.annotations.length,
    streamed,
    final: final.choices[0].message.content,
    called: called.choices[0].message.tool_calls.map((call) => [
      call.function.name,
      JSON.parse(call.function.arguments),
    ]),
    dimensions: embedded.data.map((each) => each.embedding.length),
    models: models.includes("rag/harbour"),
    stored: stored.includes(whole.id),
    refused,
  }),
);
