# "bulk_video requests must contain only presigned video URLs."
curl -s --no-fail-with-body -w '\n%{http_code}\n' -X POST 'http://<host>:8000/v1/embeddings' \
-H 'Content-Type: application/json' \
-d '{
"input": ["data:video/mp4;base64,AAAA"],
"model": "nvidia/cosmos-embed1",
"request_type": "bulk_video"
}'
