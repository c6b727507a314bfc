# Direct invocation hands the container's own body through.
curl -s --no-fail-with-body -D headers https://api.nvcf.nvidia.com/v1/chat/completions \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{"model": "nvcf/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://upload.wikimedia.org/a.jpg"}}]}]}'
