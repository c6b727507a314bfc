# A function that is not there.
curl -s --no-fail-with-body -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/00000000-0000-4000-8000-00000000dead \
-H "Authorization: Bearer $API_KEY" \
-d '{}'
