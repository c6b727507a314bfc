# "Malformed JSON in the request body": 400.
curl -s --no-fail-with-body -w '\n%{http_code}\n' -X POST \
http://0.0.0.0:8000/v1/infer \
-H 'Content-Type: application/json' \
-d '{"prompt": "a street",'
