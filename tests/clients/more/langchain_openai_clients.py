"""LangChain's OpenAI classes, whole and streamed, sync and async."""

import asyncio
import os

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

URL, KEY = os.environ["NIMGATE_URL"] + "/v1", os.environ["NIMGATE_KEY"]
MESSAGES = [SystemMessage("You are brief."), HumanMessage("Tell me of the road.")]


class Weather(BaseModel):
    """The weather somewhere."""

    city: str
    degrees: float


chat = ChatOpenAI(model="meta/llama-3.1-8b-instruct", base_url=URL, api_key=KEY, stream_usage=True)
whole = chat.invoke(MESSAGES)
assert whole.content and whole.usage_metadata["output_tokens"] > 0

pieces = list(chat.stream(MESSAGES))
assert len(pieces) > 5 and "".join(piece.content for piece in pieces) == whole.content
total = pieces[0]
for piece in pieces[1:]:
    total += piece
assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def astream():
    return "".join([piece.content async for piece in chat.astream(MESSAGES)])


assert asyncio.run(astream()) == whole.content
assert [answer.content for answer in chat.batch([MESSAGES, MESSAGES])] == [whole.content] * 2
assert isinstance(chat.with_structured_output(Weather).invoke("The weather in Santa Clara?"), Weather)
assert chat.bind_tools([Weather], tool_choice="Weather").invoke(MESSAGES).tool_calls[0]["name"] == "Weather"

# With the check of the length, LangChain would send token ids of a tokenizer that it has to download first.
embeddings = OpenAIEmbeddings(
    model="nvidia/nv-embedqa-e5-v5",
    base_url=URL,
    api_key=KEY,
    check_embedding_ctx_length=False,
    model_kwargs={"extra_body": {"input_type": "passage"}},
)
vectors = embeddings.embed_documents(["first", "second", "first"])
assert len(vectors) == 3 and len(vectors[0]) == 1024
assert vectors[0] == vectors[2] != vectors[1]
assert asyncio.run(embeddings.aembed_documents(["second"])) == [vectors[1]]

by_name = OpenAIEmbeddings(
    model="nvidia/nv-embedqa-e5-v5-query", base_url=URL, api_key=KEY, check_embedding_ctx_length=False
)
assert len(by_name.embed_query("first")) == 1024 and by_name.embed_query("first") != vectors[0]
