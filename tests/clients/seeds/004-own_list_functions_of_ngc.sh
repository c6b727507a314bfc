# "NGC Domain (required for some APIs)": the same call by the other domain.
curl -s https://api.ngc.nvidia.com/v2/nvcf/functions/ids \
-H "Authorization: Bearer $API_KEY"
