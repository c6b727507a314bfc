# The worker cannot reach the container: not the container's error.
curl -s --no-fail-with-body -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/0f000000-0000-4000-8000-000000000008 \
-H "Authorization: Bearer $API_KEY" \
-d '{}'
