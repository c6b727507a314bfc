curl -s https://api.nvcf.nvidia.com/v2/nvcf/functions \
-H "Authorization: Bearer $API_KEY"
