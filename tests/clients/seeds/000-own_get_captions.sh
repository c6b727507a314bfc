# "Get Dataset Captions" has no example; the update of a caption has to show.
curl -s -o /dev/null -X PATCH "https://api.ngc.nvidia.com/v1/cosmos/datasets/${DATASET_ID}/captions/0" \
-H "Authorization: Bearer ${COSMOS_KEY}" \
-H "Content-Type: application/json" \
-d '{"caption": "A black car drives down a road."}'
curl -s "https://api.ngc.nvidia.com/v1/cosmos/datasets/${DATASET_ID}/captions" \
-H "Authorization: Bearer ${COSMOS_KEY}"
