# The gateway refuses what NVCF would, and says so in the same format.
curl -s --no-fail-with-body -D headers -X POST \
https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/not-a-function \
-H "Authorization: Bearer $API_KEY" \
-d '{}'
