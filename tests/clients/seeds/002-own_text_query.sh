# The payload is the seed's.
curl -s -X POST 'http://<host>:8000/v1/embeddings' \
-H 'Content-Type: application/json' \
-d '{
"input": "A fluffy white cat basking in the sun.",
"model": "nvidia/cosmos-embed1",
"request_type": "query"
}'
