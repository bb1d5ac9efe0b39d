// The Vercel AI SDK: text whole and streamed, a tool, an object in a schema, embeddings.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const strongroom = createOpenAICompatible({
  name: "strongroom",
  baseURL: `${process.env.STRONGROOM_URL}/v1`,
  apiKey: process.env.STRONGROOM_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = strongroom("rag/harbour");
const prompt = "Who is the harbour master?";

const whole = await generateText({ model, prompt, maxRetries: 0 });
const streaming = streamText({ model, prompt, maxRetries: 0 });
let streamed = "";
for await (const delta of streaming.textStream) streamed += delta;
const called = await generateText({
  model,
  prompt: "Ring up the harbour master",
  tools: { ring: tool({ description: "Rings somebody up", inputSchema: z.object({ who: z.string() }) }) },
  maxRetries: 0,
});
const person = await generateText({
  model,
  prompt: "In a schema: who is the harbour master?",
  output: Output.object({ schema: z.object({ name: z.string() }) }),
  maxRetries: 0,
});
const { embeddings } = await embedMany({
  model: strongroom.textEmbeddingModel("all-MiniLM-L6-v2"),
  values: ["a key", "a hall"],
  maxRetries: 0,
});
console.log(
  JSON.stringify({
    whole: whole.text,
    streamed,
    streamed_tokens: (await streaming.usage).totalTokens,
    called: called.toolCalls.map((call) => [call.toolName, call.input]),
    person: person.output.name,
    dimensions: embeddings.map((each) => each.length),
  }),
);
