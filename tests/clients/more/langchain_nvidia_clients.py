"""NVIDIA's own LangChain classes: chat, embeddings and reranking."""

import os
import warnings

# They warn when the list of models has not what was asked for.
warnings.simplefilter("error", UserWarning)

from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import ChatNVIDIA, NVIDIAEmbeddings, NVIDIARerank

URL, KEY = os.environ["NIMGATE_URL"] + "/v1", os.environ["NIMGATE_KEY"]
os.environ["NVIDIA_API_KEY"] = KEY

chat = ChatNVIDIA(model="meta/llama-3.1-8b-instruct", base_url=URL)
whole = chat.invoke("Tell me of the road.")
assert whole.content and whole.usage_metadata["output_tokens"] > 0
assert "".join(piece.content for piece in chat.stream("Tell me of the road.")) == whole.content
assert "meta/llama-3.1-8b-instruct" in {model.id for model in chat.available_models}

vision = ChatNVIDIA(model="nvidia/cosmos-reason1-7b", base_url=URL)
picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
assert vision.invoke([{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}]).content

embeddings = NVIDIAEmbeddings(model="nvidia/nv-embedqa-e5-v5", base_url=URL)
documents = embeddings.embed_documents(["first", "second"])
assert [len(vector) for vector in documents] == [1024, 1024] and documents[0] != documents[1]
assert embeddings.embed_query("first") != documents[0]

rerank = NVIDIARerank(model="nvidia/nv-rerankqa-mistral-4b-v3", base_url=URL, top_n=2)
texts = ["dogs bark", "the cat is here", "rain falls"]
ranked = rerank.compress_documents([Document(page_content=text) for text in texts], "where is the cat")
assert [document.page_content for document in ranked][0] == "the cat is here" and len(ranked) == 2
assert ranked[0].metadata["relevance_score"] >= ranked[1].metadata["relevance_score"]
