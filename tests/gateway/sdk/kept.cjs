// OpenAI's SDK for Node: the vectors of a pool that keeps them are those of one that does not, whatever encoding was asked
// first.

const assert = require("node:assert/strict");
const { OpenAI } = require("openai");

const { URL: keptUrl, PLAIN_URL: plainUrl, KEY: apiKey } = process.env;
const [kept, plain] = [keptUrl, plainUrl].map((baseURL) => new OpenAI({ baseURL, apiKey, maxRetries: 0 }));
const seen = [];

function ask(client, input, options) {
  const body = { model: "nvidia/nv-embedqa-e5-v5", input, input_type: "query", ...options };
  return client.embeddings.create(body).withResponse();
}

async function compare(input, options) {
  const { data: ours, response } = await ask(kept, input, options);
  const { data: theirs } = await ask(plain, input, options);
  assert.equal(theirs.data.length, Array.isArray(input) ? input.length : 1);
  assert.deepEqual(ours.data, theirs.data);
  assert.deepEqual([ours.object, ours.model], [theirs.object, theirs.model]);
  if (response.headers.get("x-nimgate-usage") === "exact") {
    assert.deepEqual(ours.usage, theirs.usage);
  }
  seen.push(response.headers.get("x-nimgate-cache"));
}

async function main() {
  // The SDK asks for base64 unless told otherwise.
  const [byDefault, float, base64] = [{}, { encoding_format: "float" }, { encoding_format: "base64" }];
  for (const options of [byDefault, byDefault, float]) {
    await compare(["first", "second"], options);
  }
  for (const options of [float, byDefault, base64]) {
    await compare(["third", "fourth"], options);
  }
  for (const options of [byDefault, float]) {
    await compare("alone", options);
  }
  await compare(["second", "new", "third", "new", "first"], byDefault);
  await compare(["newer", "alone", "new"], float);
  console.log(JSON.stringify(seen));
}

main();
