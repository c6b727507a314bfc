curl -X DELETE "https://api.ngc.nvidia.com/v1/cosmos/jobs" \
-H "Authorization: Bearer ${COSMOS_KEY}"
