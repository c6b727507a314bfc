curl -s https://api.nvcf.nvidia.com/v2/nvcf/pexec/functions/ec400000-0000-4000-8000-000000000001/versions/ec400000-0000-4000-9000-000000000001 \
-H "Authorization: Bearer $API_KEY" \
-H "Content-Type: application/json" \
-d '{"echo": [1, 2, 3]}'
