curl -s https://api.nvcf.nvidia.com/v2/nvcf/queues/functions/ec400000-0000-4000-8000-000000000001 \
-H "Authorization: Bearer $API_KEY"
