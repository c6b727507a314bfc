# The payload is the seed's.
curl -s -X POST 'http://<host>:8000/v1/embeddings' \
-H 'Content-Type: application/json' \
-d '{
"input": [
  "This is the first sentence.",
  "Here is a second one for batch processing."
],
"model": "nvidia/cosmos-embed1",
"request_type": "bulk_text"
}'
