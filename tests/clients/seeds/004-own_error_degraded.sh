# A function without instances.
curl -s --no-fail-with-body -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/de600000-0000-4000-8000-000000000006 \
-H "Authorization: Bearer $API_KEY" \
-d '{}'
