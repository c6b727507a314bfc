curl -s -X DELETE "https://api.ngc.nvidia.com/v1/cosmos/datasets/${DATASET_ID}" \
-H "Authorization: Bearer ${COSMOS_KEY}"
