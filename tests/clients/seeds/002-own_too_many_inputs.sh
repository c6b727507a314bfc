# "Maximum inputs per request: 64 items for bulk_text and bulk_video modes".
jq -n '{input: [range(65) | tostring], model: "nvidia/cosmos-embed1", request_type: "bulk_text"}' |
curl -s --no-fail-with-body -w '\n%{http_code}\n' -X POST 'http://<host>:8000/v1/embeddings' \
-H 'Content-Type: application/json' -d @-
