# "if the type field includes inference-service": the container answered, and its error keeps NVCF's own words.
curl -s --no-fail-with-body -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/fa100000-0000-4000-8000-000000000007 \
-H "Authorization: Bearer $API_KEY" \
-d '{}'
