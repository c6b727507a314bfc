"""NVIDIA's LangChain embeddings: the vectors of a pool that keeps them are those of one that does not."""

import json
import os

from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings


kept, plain = (
    NVIDIAEmbeddings(model="nvidia/nv-embedqa-e5-v5", base_url=os.environ[url], nvidia_api_key=os.environ["KEY"])
    for url in ("URL", "PLAIN_URL")
)


def compare(ask):
    ours, theirs = ask(kept), ask(plain)
    assert len(theirs) > 0 and ours == theirs


for texts in (["first", "second"], ["first", "second"], ["new", "second", "new", "first"]):
    compare(lambda of, texts=texts: of.embed_documents(texts))
# A query is no passage.
for _ in range(2):
    compare(lambda of: of.embed_query("first"))
assert kept.embed_query("first") != kept.embed_documents(["first"])[0]
print(json.dumps(True))
