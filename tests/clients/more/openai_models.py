"""The list of models holds what this key may use, under the names that requests take."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"])

listed = {model.id for model in client.models.list()}
expected = {
    "meta/llama-3.1-8b-instruct",
    "nvidia/cosmos-reason1-7b",
    "nvidia/cosmos-embed1",
    "nvidia/nv-embedqa-e5-v5",
    "nvidia/nv-rerankqa-mistral-4b-v3",
    "nvcf/llama-3.1-8b-instruct",
}
assert expected <= listed, expected - listed
for name in expected:
    model = client.models.retrieve(name)
    assert model.id == name and model.object == "model" and model.created > 0 and model.owned_by

for name in ("meta/llama-3.1-8b-instruct", "nvidia/cosmos-reason1-7b", "nvcf/llama-3.1-8b-instruct"):
    answer = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=8)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
