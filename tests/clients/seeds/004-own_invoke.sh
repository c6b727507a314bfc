# An LLM behind pexec, answered at once.
curl -s -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/11a00000-0000-4000-8000-000000000002 \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}'
