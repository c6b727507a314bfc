# "Get a Dataset" has an example of its answer only.
curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets/${DATASET_ID}" \
-H "Authorization: Bearer ${COSMOS_KEY}"
