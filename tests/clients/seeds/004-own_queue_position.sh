curl -s https://api.nvcf.nvidia.com/v2/nvcf/queues/9e000000-0000-4000-8000-0000000000aa/position \
-H "Authorization: Bearer $API_KEY"
