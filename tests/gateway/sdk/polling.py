"""NVIDIA's LangChain class against a function's own URL: a 202 sends it into its own polling loop."""

import json
import os
import warnings

from langchain_nvidia_ai_endpoints import ChatNVIDIA, Model, register_model

warnings.simplefilter("ignore")
NAME = "meta/llama-3.1-8b-instruct"
register_model(Model(id=NAME, model_type="chat", client="ChatNVIDIA", endpoint=os.environ["ENDPOINT"]))
chat = ChatNVIDIA(
    model=NAME,
    api_key=os.environ["CALLER"],
    default_headers={"NVCF-POLL-SECONDS": "1"},
)
chat._client.polling_url_tmpl = os.environ["STATUS"]
chat._client.headers_tmpl["call"]["NVCF-POLL-SECONDS"] = "1"
answer = chat.invoke("Tell me of the road.")
print(json.dumps({"words": len(answer.content.split())}))
